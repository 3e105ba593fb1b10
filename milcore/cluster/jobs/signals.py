"""Clean-up on SIGTERM and Ctrl-C in the process that follows a job."""

import contextlib
import signal
from collections.abc import Callable, Iterator

from milcore.runtime.command import Termination, signal_handler


@contextlib.contextmanager
def on_termination(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM or Ctrl-C, then exit; for the main thread only."""

    def terminate(signum: int, _frame: object) -> None:
        raise Termination(signum)

    try:
        # a command has a handler already, which bounds the time of ``stop``
        with contextlib.nullcontext() if callable(signal.getsignal(signal.SIGTERM)) else signal_handler(terminate):
            yield
    except (KeyboardInterrupt, SystemExit):
        stop()
        raise
