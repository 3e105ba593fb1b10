"""Chosen patches of a slide: which ones, from a seed, and reading them in few requests."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int, UInt8

from milcore.store.slide_group import SlideGroup

SAMPLE = 64
RUN = 8
LARGEST_GAP = 8
READING_THREADS = 8


def sample_runs(count: int, slide_id: str, seed: int) -> list[int]:
    """At most 64 of a slide's patches, in runs of eight neighbours so that eight requests read them.

    Args:
        count: patches of the slide.
        slide_id: the draw hangs on it and on the seed, not on other slides.
        seed: of the draw.
    """
    if count <= SAMPLE:
        return list(range(count))
    starts = RUN * _generator(slide_id, seed).choice(count // RUN, SAMPLE // RUN, replace=False)
    return [int(start) + k for start in sorted(starts) for k in range(RUN)]


def sample_both_classes(labels: Int[np.ndarray, " instance"], slide_id: str, seed: int) -> list[int]:
    """At most 32 positive and 32 negative patches; patches with label -1 are left out."""
    random = _generator(slide_id, seed)
    places = [np.flatnonzero(labels == label) for label in (0, 1)]
    drawn = [random.choice(place, min(len(place), SAMPLE // 2), replace=False) for place in places]
    return [int(k) for k in np.sort(np.concatenate(drawn))]


def read_patches(slide: SlideGroup, indices: Sequence[int]) -> UInt8[np.ndarray, "patch row column 3"]:
    """Patches in the order of ``indices``; near ones are read together, distant ones at the same time."""
    places = np.unique(np.asarray(indices, dtype=np.int64))
    runs = np.split(places, np.flatnonzero(np.diff(places) > LARGEST_GAP) + 1)
    with ThreadPoolExecutor(READING_THREADS) as pool:
        read = pool.map(lambda run: slide.patches(int(run[0]), int(run[-1]) + 1)[run - run[0]], runs)
    patches: np.ndarray = np.concatenate(list(read))[np.searchsorted(places, indices)]
    return patches


def _generator(slide_id: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(slide_id.encode())])
