"""Work dealt to processes of this machine, none of it lost when a process is killed (out of memory, say).

Processes are spawned, never forked: open file systems and threads do not survive a fork.
"""

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

I = TypeVar("I")  # noqa: E741 - item
R = TypeVar("R")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def map_in_processes(
    function: Callable[[I], R], items: Iterable[I], workers: int, killed: Callable[[I], R]
) -> Iterator[R]:
    """The result of every item, as they come.

    When a process dies, the items in work are tried again, each alone in a process of its own: the one that kills that
    too is answered by ``killed``, the others were bystanders.

    Args:
        function: importable; its arguments and results are pickled.
        items: what to work on.
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
                still = yield from _until_broken(function, alone, 1)
                yield from (killed(item) for item in still)


def _until_broken(function: Callable[[I], R], waiting: deque[I], workers: int) -> Generator[R, None, list[I]]:
    """Work through ``waiting``, emptying it; if a process dies stop, and return the items in work then.

    No more items than processes are handed out at a time, so that few are under suspicion.
    """
    running: dict[Future[R], I] = {}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running[pool.submit(function, waiting[0])] = waiting[0]
                    waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    del running[future]
                    yield result
        except BrokenProcessPool:
            return list(running.values())
    return []


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile compute on one thread: they are the parallelism."""
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
