"""What is done when a process that waits for a job is told to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_leaving(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM or Ctrl-C, then leave; for the main thread."""

    def leave(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        stop()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
