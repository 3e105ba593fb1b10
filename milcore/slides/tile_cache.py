"""A bounded, thread-safe LRU cache of decoded tiles and of blocks of remote files.

Patches are read row by row, so the tiles that one row of patches needs must fit. Where threads ask for one key at the
same time, the first computes the result and the others wait for it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TileIndex(NamedTuple):
    """Level of a tile, and its column and row in that level's grid."""

    level: int
    column: int
    row: int


class LruCache(Generic[K, V]):
    """The most recently used results of a function.

    Args:
        compute: the result for a key; its exception is raised in every thread that asks for that key.
        capacity: results to keep.
    """

    def __init__(self, compute: Callable[[K], V], capacity: int) -> None:
        self._compute, self._capacity = compute, capacity
        self._futures: OrderedDict[K, Future[V]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V:
        """The result for a key. It is shared between threads: read only."""
        with self._lock:
            future = self._futures.get(key)
            is_new = future is None
            if future is None:
                future = self._futures[key] = Future()
                if len(self._futures) > self._capacity:
                    self._futures.popitem(last=False)
            else:
                self._futures.move_to_end(key)
        if is_new:
            self._fill(key, future)
        return future.result()

    def _fill(self, key: K, future: Future[V]) -> None:
        try:
            future.set_result(self._compute(key))
        except BaseException as error:  # noqa: BLE001 - raised in this thread and in those that wait for the key
            future.set_exception(error)
