"""Dynamic batching: what waits while a batch is computed is the next batch.

So there is no time to wait for others, and none is lost where nothing else waits. ``ray.serve.batch`` forms its batches
by a clock, also while one is computed, and refuses an item that is larger than a batch.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

I = TypeVar("I")  # noqa: E741 - item
R = TypeVar("R")


class BatchQueue(Generic[I, R]):
    """Queue of items that a function takes several at a time.

    It belongs to one event loop.

    Args:
        function: results of items, in their order; one call at a time, in a thread.
        size: of an item.
        limit: sizes of a batch together at most; a larger item is a batch of its own.
    """

    def __init__(self, function: Callable[[Sequence[I]], Sequence[R]], size: Callable[[I], int], limit: int) -> None:
        self._function, self._size, self._limit = function, size, limit
        self._waiting: deque[tuple[I, asyncio.Future[R]]] = deque()
        self._computation: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")

    async def result(self, item: I) -> R:
        """The function's result of an item.

        An item that is cancelled while it waits is not computed.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._computation is None:
            self._computation = asyncio.create_task(self._compute())
        return await future

    async def _compute(self) -> None:
        """Compute batches until none waits."""
        while batch := self._next_batch():
            items, futures = zip(*batch, strict=True)
            call = asyncio.get_running_loop().run_in_executor(self._thread, self._function, items)
            (results,) = await asyncio.gather(call, return_exceptions=True)
            for k, future in enumerate(futures):
                if future.done():
                    continue  # cancelled
                if isinstance(results, BaseException):
                    future.set_exception(results)
                else:
                    future.set_result(results[k])
        self._computation = None

    def _next_batch(self) -> list[tuple[I, asyncio.Future[R]]]:
        """The items at the head of the queue that fit together.

        At least one where any waits.
        """
        batch: list[tuple[I, asyncio.Future[R]]] = []
        total = 0
        while self._waiting:
            item, future = self._waiting[0]
            if not future.cancelled():
                total += self._size(item)
                if batch and total > self._limit:
                    break
                batch.append((item, future))
            self._waiting.popleft()
        return batch
