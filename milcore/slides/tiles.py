"""Decoded tiles kept for a while, so that each is decoded once though several patches are cut from it.

What is kept is bounded in bytes; patches come row by row, so the tiles of one row of patches are what must fit.
Threads may ask at the same time: the first decodes, the others wait for it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CACHE_MB = 256.0

Pixels = npt.NDArray[np.uint8]


class Place(NamedTuple):
    """A tile: its level, and its column and row in that level's grid."""

    level: int
    column: int
    row: int


class TileCache:
    """The tiles used last.

    Args:
        decode: makes the pixels of a place; what it raises is raised again to whoever asks for that place.
        tile_bytes: size of the largest tile decoded.
    """

    def __init__(self, decode: Callable[[Place], Pixels], tile_bytes: int) -> None:
        self._decode = decode
        self._most = max(2, int(CACHE_MB * 1e6 / tile_bytes))
        self._kept: OrderedDict[Place, Future[Pixels]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, place: Place) -> Pixels:
        """The tile's pixels, read-only."""
        with self._lock:
            kept = self._kept.get(place)
            mine = kept is None
            if kept is None:
                kept = self._kept[place] = Future()
                if len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(place)
        if mine:
            self._fill(place, kept)
        return kept.result()

    def _fill(self, place: Place, future: Future[Pixels]) -> None:
        try:
            pixels = self._decode(place)
        except BaseException as error:  # noqa: BLE001 - it reaches the caller, and those who wait for the same tile
            future.set_exception(error)
        else:
            pixels.flags.writeable = False
            future.set_result(pixels)
