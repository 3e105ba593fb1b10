"""Partitions of a cohort of about equal work, by the slides' file sizes.

The planning step writes them to the store, ``shares/<count>.json``, before the fan-out: steps that measured files
themselves could come to different partitions, and lose a slide between them.
"""

import heapq
from collections.abc import Sequence

from milcore.cohort.manifest import Slide
from milcore.errors import InputError
from milcore.runtime import storage
from milcore.slides.source import source_versions
from milcore.store.store import PatchStore


def divide(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Divide items into partitions: the largest first, each to the lightest partition.

    Source: Graham 1969, longest processing time first; the heaviest partition is at most 4/3 of the best.

    Args:
        sizes: of the items, in bytes.
        count: number of partitions.

    Returns:
        Sorted indices of the items of each partition.
    """
    partitions: list[list[int]] = [[] for _ in range(count)]
    lightest = [(0, 0, k) for k in range(count)]
    for index in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        weight, items, k = heapq.heappop(lightest)
        partitions[k].append(index)
        heapq.heappush(lightest, (weight + sizes[index], items + 1, k))
    return [sorted(partition) for partition in partitions]


def write_partitions(store_uri: str, count: int) -> None:
    """Divide the store's cohort into partitions and write them to the store."""
    store = PatchStore(store_uri)
    slides = store.manifest().slides
    versions = source_versions(slide.uri for slide in slides)
    # one that is out of reach costs little work
    sizes = [versions[slide.uri].size if slide.uri in versions else 0 for slide in slides]
    partitions = [[slides[k].slide_id for k in partition] for partition in divide(sizes, count)]
    storage.write_json(_uri(store, count), partitions)


def read_partition(store: PatchStore, index: int, count: int) -> list[Slide]:
    """Slides of one partition, in manifest order.

    Every count-th slide where the store has no partitions of this cohort.

    Raises:
        InputError: the index is out of range.
    """
    if not 0 <= index < count:
        raise InputError(f"partition: expected 0 <= index < {count}, got {index}; allowed: 0 to {count - 1}")
    slides = store.manifest().slides
    try:
        partitions = storage.read_json(_uri(store, count))
    except FileNotFoundError:
        return list(slides[index::count])
    if not _is_partition_of(partitions, slides, count):
        return list(slides[index::count])  # of another cohort: every step reads the same
    slide_ids = set(partitions[index])
    return [slide for slide in slides if slide.slide_id in slide_ids]


def _is_partition_of(partitions: object, slides: Sequence[Slide], count: int) -> bool:
    """True for ``count`` lists that hold every slide once; others may have written them."""
    if not isinstance(partitions, list) or len(partitions) != count or not all(isinstance(p, list) for p in partitions):
        return False
    return sorted(str(name) for partition in partitions for name in partition) == sorted(s.slide_id for s in slides)


def _uri(store: PatchStore, count: int) -> str:
    return storage.join(store.uri, "shares", f"{count}.json")
