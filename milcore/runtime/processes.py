"""Map over local processes that survives a killed process.

No item is lost when a process is killed, by lack of memory for instance. Processes are spawned, never forked: open file
systems and threads do not survive a fork.
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
    """Results of a function over items, in order of completion.

    When a process dies, each item in work is repeated alone in a process of its own: an item whose process dies again
    gets the result of ``killed``; the others did not cause the death.

    Args:
        function: importable; its arguments and results are pickled.
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
