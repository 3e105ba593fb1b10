"""Random samples of a slide's patches, read in few requests."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int, UInt8

from milcore.store.slide_group import SlideGroup

SAMPLE = 64
# consecutive patches that one request reads
RUN = 8
# of patches to read, in patches: a wider gap is not read along
LARGEST_GAP = 8
READING_THREADS = 8


def sample_runs(count: int, slide_id: str, seed: int) -> list[int]:
    """Indices of at most 64 of a slide's patches, in runs of eight neighbours.

    Eight requests read them.

    Args:
        count: patches of the slide.
        slide_id: of the slide; the sample depends on it and on the seed, not on other slides.
        seed: of the sample.
    """
    if count <= SAMPLE:
        return list(range(count))
    starts = RUN * _generator(slide_id, seed).choice(count // RUN, SAMPLE // RUN, replace=False)
    return [int(start) + k for start in sorted(starts) for k in range(RUN)]


def sample_both_classes(labels: Int[np.ndarray, " instance"], slide_id: str, seed: int) -> list[int]:
    """Sorted indices of at most 32 positive and 32 negative patches.

    Patches with label -1 are left out.
    """
    random = _generator(slide_id, seed)
    of_class = [np.flatnonzero(labels == label) for label in (0, 1)]
    samples = [random.choice(indices, min(len(indices), SAMPLE // 2), replace=False) for indices in of_class]
    return [int(k) for k in np.sort(np.concatenate(samples))]


def read_patches(slide: SlideGroup, indices: Sequence[int]) -> UInt8[np.ndarray, "patch row column 3"]:
    """Read patches in the order of ``indices``: neighbours in one request, requests in parallel."""
    unique = np.unique(np.asarray(indices, dtype=np.int64))
    runs = np.split(unique, np.flatnonzero(np.diff(unique) > LARGEST_GAP) + 1)
    with ThreadPoolExecutor(READING_THREADS) as pool:
        of_runs = pool.map(lambda run: slide.patches(int(run[0]), int(run[-1]) + 1)[run - run[0]], runs)
    patches: np.ndarray = np.concatenate(list(of_runs))[np.searchsorted(unique, indices)]
    return patches


def _generator(slide_id: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(slide_id.encode())])
