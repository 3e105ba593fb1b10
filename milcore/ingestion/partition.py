"""A cohort divided into shares of about equal work, by the sizes of its slides' files.

The planning step writes the division into the store, ``shares/<count>.json``, before the fan-out: a step that measured
files itself could come to another division than its neighbour, and lose a slide between them.
"""

import heapq
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from milcore.cohort.manifest import Slide
from milcore.errors import InputError
from milcore.runtime import storage
from milcore.store.store import PatchStore

STATS_AT_A_TIME = 16


def divide(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Indices of items dealt to ``count`` shares, the largest first, each to the share that is smallest then.

    Source: Graham 1969, longest processing time first; the largest share is at most 4/3 of the best.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    lightest = [(0, 0, k) for k in range(count)]
    for index in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        weight, items, share = heapq.heappop(lightest)
        shares[share].append(index)
        heapq.heappush(lightest, (weight + sizes[index], items + 1, share))
    return [sorted(share) for share in shares]


def write_partition(store_uri: str, count: int) -> None:
    """Divide the store's cohort and keep the division in the store."""
    store = PatchStore(store_uri)
    slides = store.manifest().slides
    with ThreadPoolExecutor(STATS_AT_A_TIME) as pool:
        sizes = list(pool.map(_size, [slide.uri for slide in slides]))
    shares = [[slides[k].slide_id for k in share] for share in divide(sizes, count)]
    storage.write_json(_uri(store, count), shares)


def read_partition(store: PatchStore, index: int, count: int) -> list[Slide]:
    """The slides of one share, in manifest order; every count-th of them where the cohort was not divided by size.

    Raises:
        InputError: a share that is none.
    """
    if not 0 <= index < count:
        raise InputError(f"partition: expected 0 <= index < {count}, got {index}; allowed: 0 to {count - 1}")
    slides = store.manifest().slides
    try:
        shares = storage.read_json(_uri(store, count))
    except FileNotFoundError:
        return list(slides[index::count])
    if sorted(name for share in shares for name in share) != sorted(slide.slide_id for slide in slides):
        return list(slides[index::count])  # of another cohort: every step sees that alike
    mine = set(shares[index])
    return [slide for slide in slides if slide.slide_id in mine]


def _size(uri: str) -> int:
    """Bytes; 0 for what cannot be reached now and so costs little."""
    try:
        return storage.stat(uri).size
    except (*storage.IO_ERRORS, ValueError, ImportError):
        return 0


def _uri(store: PatchStore, count: int) -> str:
    return storage.join(store.uri, "shares", f"{count}.json")
