"""What was made last kept for a while (decoded tiles, blocks of a remote file), so that each is made once.

What is kept is bounded; patches come row by row, so what one row of patches needs is what must fit. Threads may ask at
the same time: the first makes it, the others wait for it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TileIndex(NamedTuple):
    """A tile: its level, and its column and row in that level's grid."""

    level: int
    column: int
    row: int


class LruCache(Generic[K, V]):
    """The results used last.

    Args:
        make: the result for a key; what it raises is raised again to whoever asks for that key.
        most: results to keep.
    """

    def __init__(self, make: Callable[[K], V], most: int) -> None:
        self._make, self._most = make, most
        self._kept: OrderedDict[K, Future[V]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V:
        """The result, shared by all who ask: not to be written to."""
        with self._lock:
            kept = self._kept.get(key)
            mine = kept is None
            if kept is None:
                kept = self._kept[key] = Future()
                if len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
        if mine:
            self._fill(key, kept)
        return kept.result()

    def _fill(self, key: K, future: Future[V]) -> None:
        try:
            future.set_result(self._make(key))
        except BaseException as error:  # noqa: BLE001 - it reaches the caller, and those who wait for the same key
            future.set_exception(error)
