"""Bags, ragged batches of them, and how a global batch is dealt to workers.

A batch packs its bags' instances into one run of rows beside their lengths; nothing is padded. It is computed on in
chunks of rows, so a bag too large for memory stays where it is and is read chunk by chunk. The global batch is formed
first, from (seed, epoch) alone, then dealt to ranks: what is learnt does not depend on how many workers there are.

Axes: instance, bag; the other axes of instances are (feature,) or (channel, height, width).
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from milcore.rows import ChainedRows, ChosenRows, Rows, RowsBetween
from milcore.segments import Segments, ragged

LARGEST_SHARE_OF_CACHE = 4


@dataclass(frozen=True, slots=True, eq=False)
class Bag:
    """The instances of one slide or patient under its label."""

    bag_id: str
    patient_id: str
    label: int
    instances: Rows


class Chunk(NamedTuple):
    """Consecutive rows of a batch; ``segments`` and ``bag_keys`` are those of the bags ``first_bag`` and on."""

    instances: Tensor
    segments: Segments
    bag_keys: Int[Tensor, " bag"]
    first_bag: int


@dataclass(frozen=True, slots=True, eq=False)
class BagBatch:
    """Bags packed one after another.

    Args:
        instances: all rows.
        lengths: rows of each bag.
        position: place of each row in its bag.
        labels: class of each bag.
        keys: a number per bag that stays the same in every batch, epoch and world size; randomness hangs on it.
        spread: whether every worker holds a part of each of these bags.
    """

    instances: Rows
    lengths: tuple[int, ...]
    position: Int[Tensor, " instance"]
    labels: Int[Tensor, " bag"]
    keys: Int[Tensor, " bag"]
    spread: bool

    def spans(self, rows: int) -> list[tuple[int, int]]:
        """The batch cut into runs of at most so many rows."""
        total = len(self.instances)
        return [(start, min(start + rows, total)) for start in range(0, total, rows)]

    def chunk(self, start: int, stop: int, device: torch.device) -> Chunk:
        """Rows ``start`` to ``stop`` (exclusive) on a device."""
        lengths = np.asarray(self.lengths, dtype=np.int64)
        ends = lengths.cumsum()
        first, last = (int(np.searchsorted(ends, row, side="right")) for row in (start, stop - 1))
        bags = slice(first, last + 1)
        here = np.minimum(ends[bags], stop) - np.maximum(ends[bags] - lengths[bags], start)
        return Chunk(
            self.instances[start:stop].to(device, non_blocking=True),
            Segments.of(here, self.position[start:stop]).to(device),
            self.keys[bags].to(device, non_blocking=True),
            first,
        )

    def drawn(self, most: int, seed: int, epoch: int) -> "BagBatch":
        """At most so many instances of each bag; (seed, epoch, bag) says which, whatever else is in the batch."""
        if max(self.lengths) <= most:
            return self
        kept = [
            np.arange(length) if length <= most else _draw(length, most, [seed, epoch, int(key)])
            for length, key in zip(self.lengths, self.keys, strict=True)
        ]
        begins = np.cumsum(self.lengths) - self.lengths
        places = torch.from_numpy(np.concatenate([begin + its for begin, its in zip(begins, kept, strict=True)]))
        return replace(
            self,
            instances=ChosenRows(self.instances, places),
            lengths=tuple(len(its) for its in kept),
            position=self.position[places],
        )

    def part(self, rank: int, world_size: int) -> "BagBatch":
        """The share of a rank when every bag is cut into equal runs, one per worker.

        Raises:
            ValueError: a bag has fewer instances than there are workers.
        """
        if min(self.lengths) < world_size:
            raise ValueError(
                f"a bag of {min(self.lengths)} instances cannot be spread over {world_size} workers; allowed: at least "
                "one instance per worker"
            )
        cuts = [(length * rank // world_size, length * (rank + 1) // world_size) for length in self.lengths]
        begins = [end - length for end, length in zip(itertools.accumulate(self.lengths), self.lengths, strict=True)]
        runs = [(begin + low, begin + high) for begin, (low, high) in zip(begins, cuts, strict=True)]
        return BagBatch(
            ChainedRows([RowsBetween(self.instances, *run) for run in runs]),
            tuple(high - low for low, high in cuts),
            torch.cat([self.position[slice(*run)] for run in runs]),
            self.labels,
            self.keys,
            spread=True,
        )


def _draw(length: int, count: int, seed: Sequence[int]) -> Int[np.ndarray, " instance"]:
    return np.sort(np.random.default_rng(seed).choice(length, count, replace=False))


def pack(bags: Sequence[Bag], keys: Sequence[int]) -> BagBatch:
    """One ragged batch of whole bags.

    Args:
        bags: at least one, none of them empty.
        keys: see ``BagBatch``.

    Raises:
        ValueError: a bag has no instance; its pooled value would be undefined.
    """
    for bag in bags:
        if len(bag.instances) == 0:
            raise ValueError(f"bag {bag.bag_id!r} has 0 instances; allowed: at least 1")
    lengths = np.array([len(bag.instances) for bag in bags], dtype=np.int64)
    return BagBatch(
        bags[0].instances if len(bags) == 1 else ChainedRows([bag.instances for bag in bags]),
        tuple(lengths.tolist()),
        torch.from_numpy(ragged(lengths)[1]),
        torch.tensor([bag.label for bag in bags]),
        torch.tensor(list(keys), dtype=torch.int64),
        spread=False,
    )


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

    def divided(self, split_of: Mapping[str, str]) -> "Bags":
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


def global_batches(indices: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The bags of an epoch in random order, cut into global batches; the last may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(len(indices))
    shuffled = [indices[place] for place in order]
    return [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]


def deal(indices: Sequence[int], lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Bags dealt to ranks, longest first to the rank that holds the fewest instances; a rank may get none."""
    hands: list[list[int]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        rank = load.index(min(load))
        hands[rank].append(index)
        load[rank] += lengths[index]
    return hands


def micro_batches(indices: Sequence[int], lengths: Sequence[int], max_instances: int) -> list[list[int]]:
    """Consecutive runs of bags that hold at most so many instances together; a larger bag stands alone."""
    runs: list[list[int]] = []
    held = 0
    for index in indices:
        if runs and held + lengths[index] <= max_instances:
            runs[-1].append(index)
            held += lengths[index]
        else:
            runs.append([index])
            held = lengths[index]
    return runs
