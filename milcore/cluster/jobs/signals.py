"""Clean-up on SIGTERM and Ctrl-C in the process that follows a job."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_termination(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM or Ctrl-C, then exit; for the main thread only."""

    def terminate(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        stop()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
