"""Map over local processes that survives a killed process.

No item is lost when a process is killed, by lack of memory for instance. Processes are spawned, never forked: open file
systems and threads do not survive a fork.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

I = TypeVar("I")  # noqa: E741 - item
R = TypeVar("R")

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def map_in_processes(
    function: Callable[[I], R], items: Iterable[I], workers: int, killed: Callable[[I], R]
) -> Iterator[R]:
    """Results of a function over items, in order of completion.

    When a process dies, each item in work is repeated alone in a process of its own: an item whose process dies again
    gets the result of ``killed``; the others did not cause the death.

    Args:
        function: importable, not from the main module; its arguments and results are pickled.
        items: arguments, one per call.
        workers: processes at a time.
        killed: the result of an item whose process died twice.

    Raises:
        Exception: what ``function`` raised, at once.
    """
    waiting = deque(items)
    with _one_thread_each():
        while waiting:
            for suspect in (yield from _until_broken(function, waiting, workers)):
                alone = deque([suspect])
                killers = yield from _until_broken(function, alone, 1)
                yield from (killed(item) for item in killers)


def _until_broken(function: Callable[[I], R], waiting: deque[I], workers: int) -> Generator[R, None, list[I]]:
    """Empty ``waiting``; if a process dies, stop and return the items in work.

    No more items than processes are submitted at a time, so that few are suspected.
    """
    running: dict[Future[R], I] = {}
    spawn, fate = multiprocessing.get_context("spawn"), (os.getpid(), signal.SIGKILL)
    with ProcessPoolExecutor(workers, spawn, initializer=end_with_parent, initargs=fate) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    with _without_interrupts(), _without_main():
                        running[pool.submit(function, waiting[0])] = waiting[0]
                    waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    del running[future]
                    yield result
        except BrokenProcessPool:
            return list(running.values())
        except BaseException:  # no result is wanted any more; leaving the context would wait for them
            for process in list((pool._processes or {}).values()):  # noqa: SLF001 - public in Python 3.14 alone
                process.kill()
            raise
    return []


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Leave Ctrl-C to this process: those started in this context never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep processes that start in this context from importing the program's main module.

    They need none of it, and a script that does not guard its work by ``__name__`` would begin it anew in each.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent(parent: int, signum: int) -> None:
    """Send this process a signal when its parent ends.

    Args:
        parent: its id; where it has ended already, this process exits.
        signum: the signal.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(128 + signum)


@contextlib.contextmanager
def adopted_orphans() -> Iterator[None]:
    """Make this process the parent of descendants whose own has ended.

    So ``descendants`` has them too.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def kill_descendants() -> None:
    """Kill every process that this one, or a descendant, has started."""
    while pids := descendants():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def terminate_children(seconds: float) -> None:
    """Ask every child to end, also new ones, until none is left.

    Args:
        seconds: after which all descendants are killed.
    """
    until, asked = time.monotonic() + seconds, set[int]()
    while descendants() and time.monotonic() < until:
        for pid in set(children()) - asked:
            asked.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.02)
    kill_descendants()


def children() -> list[int]:
    """Ids of the living processes that this one has started."""
    return [pid for pid, parent in _living().items() if parent == os.getpid()]


def descendants() -> list[int]:
    """Ids of the living processes that this one, or a descendant, has started."""
    parents = _living()
    ids, families = [], [os.getpid()]
    while families:
        family = families.pop()
        offspring = [pid for pid, parent in parents.items() if parent == family]
        ids += offspring
        families += offspring
    return ids


def _living() -> dict[int, int]:
    """The parent of every living process of the machine."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # after the name in parentheses, which may hold any character
                state, parent, *_ = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if state not in {"Z", "X"}:
                    parents[int(entry.name)] = int(parent)
    return parents


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes started in this context compute on one thread each."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
