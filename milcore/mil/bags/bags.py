"""Bags, ragged batches of them, and how a global batch is dealt to workers.

A batch packs its bags' instances into one run of rows beside their lengths; nothing is padded. It is computed on in
chunks of rows, so a bag too large for memory stays where it is and is read chunk by chunk. The global batch is formed
first, from (seed, epoch) alone, then dealt to ranks: what is learnt does not depend on how many workers there are.

Axes: instance, bag; the other axes of instances are (feature,) or (channel, height, width).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from milcore.mil.bags.batch import Bag, BagBatch, pack
from milcore.mil.bags.rows import Rows

LARGEST_SHARE_OF_CACHE = 4


class BagEntry(NamedTuple):
    """What is known of a bag before its instances are read: those of its slides, one after another."""

    bag_id: str
    patient_id: str
    label: int
    split: str
    slides: tuple[str, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of_slide(cls, slide_id: str, patient_id: str, label: int, split: str, length: int) -> "BagEntry":
        """A bag that is one slide."""
        return cls(slide_id, patient_id, label, split, (slide_id,), (length,))

    @property
    def length(self) -> int:
        """Instances of all slides."""
        return sum(self.lengths)

    def by_slide(self, values: Shaped[np.ndarray, " instance"]) -> dict[str, np.ndarray]:
        """A value per instance, cut into those of each slide."""
        return dict(zip(self.slides, np.split(values, np.cumsum(self.lengths)[:-1]), strict=True))


class Bags:
    """Bags read when asked for and kept while they fit the cache.

    A bag that would take more than a quarter of the cache is handed out as rows that are still to be read.

    Args:
        entries: one per bag.
        open_rows: the instances of a bag; called from a reading thread.
        cache_bytes: instances kept in memory.
    """

    def __init__(self, entries: Sequence[BagEntry], open_rows: Callable[[BagEntry], Rows], cache_bytes: int) -> None:
        self.entries = tuple(entries)
        self.lengths = tuple(entry.length for entry in entries)
        self._open_rows = open_rows
        self._cache: dict[int, Bag] = {}
        self._cached_bytes = 0
        self.cache_bytes = cache_bytes

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Bag:
        bag = self._cache.get(index)
        return self._read(index) if bag is None else bag

    def __iter__(self) -> Iterator[Bag]:
        return (self[index] for index in range(len(self)))

    def instance(self) -> Tensor:
        """One instance, first axis kept: what all of them look like."""
        return self[0].instances[:1]

    @property
    def classes(self) -> int:
        """How many classes the labels are of, at least 2."""
        return max(2, 1 + max(entry.label for entry in self.entries))

    def split(self, name: str) -> list[int]:
        """Indices of the bags of one split."""
        return [index for index, entry in enumerate(self.entries) if entry.split == name]

    def with_splits(self, split_of: Mapping[str, str]) -> "Bags":
        """The same bags, and the same memory of them, under other splits.

        Args:
            split_of: the split of a bag by its id; a bag that is not named is in none.
        """
        other = copy.copy(self)
        other.entries = tuple(entry._replace(split=split_of.get(entry.bag_id, "")) for entry in self.entries)
        return other

    def batches(self, groups: Iterable[Sequence[int]]) -> Iterator[BagBatch]:
        """The batch of each group of indices; the next one is read while the last is worked on."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="bags") as pool:
            pending: Future[BagBatch] | None = None
            for group in groups:
                following = pool.submit(self._pack, tuple(group))
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()

    @cached_property
    def _instance_bytes(self) -> int:
        return self._open_rows(self.entries[0])[:1].nbytes

    def _pack(self, group: Sequence[int]) -> BagBatch:
        return pack([self[index] for index in group], group)

    def _read(self, index: int) -> Bag:
        entry = self.entries[index]
        rows = self._open_rows(entry)
        size = entry.length * self._instance_bytes
        if size > self.cache_bytes // LARGEST_SHARE_OF_CACHE:
            return Bag(entry.bag_id, entry.patient_id, entry.label, rows)
        bag = Bag(entry.bag_id, entry.patient_id, entry.label, rows[: entry.length])
        # bags that do not fit are read again each epoch: evicting others would make every epoch miss every bag
        if self._cached_bytes + size <= self.cache_bytes:
            self._cache[index] = bag
            self._cached_bytes += size
        return bag
