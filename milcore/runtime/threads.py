"""Map over threads with a bound on what is in work.

For functions that wait for storage, or compute outside the interpreter.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

I = TypeVar("I")  # noqa: E741 - item
R = TypeVar("R")


def map_in_threads(
    function: Callable[[I], R],
    items: Iterable[I],
    threads: int,
    size: Callable[[I], float] = lambda _: 1.0,
    most: float = float("inf"),
) -> Iterator[R]:
    """Results of a function over items, in their order.

    Items are taken one by one in the caller's thread, and at most twice as many as threads, and of a size of at most
    ``most`` together, wait for their result; an item that is larger goes alone. What has begun ends, even where an item
    before it failed.

    Args:
        function: may run in several threads at once.
        items: arguments, one per call.
        threads: calls at a time.
        size: of an item, such as the memory that its call takes.
        most: size of all items in work.

    Raises:
        Exception: what ``function`` raised for the first item for which it did.
    """
    working: deque[tuple[Future[R], float]] = deque()
    total = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            added = size(item)
            while working and (len(working) >= 2 * threads or total + added > most):
                future, done = working.popleft()
                total -= done
                yield future.result()
            working.append((pool.submit(function, item), added))
            total += added
        yield from (future.result() for future, _ in working)
