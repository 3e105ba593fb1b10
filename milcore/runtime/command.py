"""Border of every command.

An error is one line and an exit code, never a traceback. So is SIGTERM or Ctrl-C, after which no process that the
command started is left.
"""

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from milcore.errors import InputError, MILError
from milcore.runtime.processes import adopted_orphans, end_with_parent, kill_descendants
from milcore.runtime.thread_limit import thread_limit

# ruff: noqa: PLC0415 - compiling a pipeline takes this without what storage and progress need

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Kubernetes kills a pod 30 s after it asked it to stop
SECONDS_TO_STOP = 25.0
_PARENT = "MILCORE_PARENT"


class Termination(SystemExit):
    """SIGTERM or Ctrl-C, as an exit with the code 128 + signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


@contextlib.contextmanager
def exit_codes(program: str = "milcore") -> Iterator[None]:
    """Exit with an error's one line and code, or a signal's.

    Args:
        program: begins the line.
    """
    if os.environ.get(_PARENT) == str(os.getppid()):
        end_with_parent(os.getppid(), signal.SIGTERM)
    try:
        with adopted_orphans(), thread_limit(), _terminable():
            yield
    except Termination as ended:
        log_termination(program, ended.signum)
        raise
    except Exception as error:
        of_user = error_line(error)
        if of_user is None:
            raise
        line, code = of_user
        _exit(f"{program}: {line}", code)


def error_line(error: Exception) -> tuple[str, int] | None:
    """One line and exit code of an error.

    None of one that is a fault of the code.
    """
    if isinstance(error, MILError):
        return error.line, error.exit_code
    from milcore.runtime.storage import IO_ERRORS

    if not isinstance(error, IO_ERRORS):
        return None
    # an object that a command cannot do without, and did not name itself
    absent = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return line, InputError.exit_code if absent else MILError.exit_code


def _exit(line: str, code: int) -> NoReturn:
    from milcore.runtime.progress import log_line

    log_line(line)
    raise SystemExit(code) from None


def log_termination(program: str, signum: int) -> None:
    """Log the one line of a command that a signal has ended."""
    from milcore.runtime.progress import log_line

    log_line(f"{program}: stopped by {signal.Signals(signum).name}; the same command goes on from what is done")


@contextlib.contextmanager
def bound_children() -> Iterator[None]:
    """End commands that this process starts when it ends, even killed."""
    os.environ[_PARENT] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[_PARENT]


@contextlib.contextmanager
def signal_handler(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle SIGTERM and Ctrl-C within the context; the main thread's only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)


@contextlib.contextmanager
def delayed_signals() -> Iterator[None]:
    """Handle SIGTERM and Ctrl-C of a command when the context ends.

    For what cannot be ended half-done, and for foreign code that takes the signals for its own.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not isinstance(handler, _Stop) or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    with signal_handler(lambda signum, _: received.append(signum)):
        yield
    if received:
        handler(received[0], None)


class _Stop:
    """Handler that ends the command.

    The first signal raises ``Termination`` in the main thread, which ends what the command has begun. Another one, or
    SECONDS_TO_STOP, end all processes at once: the exception may be lost in foreign code, or wait for it.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum is not None:
            _exit_now(128 + signum)
        self.signum = signum
        timer = threading.Timer(SECONDS_TO_STOP, _exit_now, (128 + signum,))
        timer.daemon = True
        timer.start()
        raise Termination(signum)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    stop = _Stop()
    with signal_handler(stop):
        try:
            yield
        except BaseException as error:
            if stop.signum is None:
                raise
            # a generator that a variable holds ends its processes now, with their semaphores; after Python's resource
            # tracker, a descendant too, is killed, their release would start another, which logs tracebacks
            traceback.clear_frames(error.__traceback__)
            kill_descendants()
            # foreign code may have made another exception of it
            raise Termination(stop.signum) from None


def _exit_now(code: int) -> None:
    kill_descendants()
    os._exit(code)
