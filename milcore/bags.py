"""Bags, ragged batches of them, and how a global batch is dealt to workers.

A batch packs its bags' instances into one tensor beside their segments; nothing is padded. The global batch is formed
first, from (seed, epoch) alone, then dealt to ranks: what is learnt does not depend on how many workers there are.

Axes: instance, bag; the other axes of instances are (feature,) or (channel, height, width).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from milcore.pooling import Segments

CACHE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Bag:
    """The instances of one slide under its label."""

    slide_id: str
    patient_id: str
    label: int
    instances: Tensor


class BagBatch(NamedTuple):
    """Bags packed one after another."""

    instances: Tensor
    segments: Segments
    labels: Int[Tensor, " bag"]
    keys: Int[Tensor, " bag"]

    def to(self, device: torch.device, dtype: torch.dtype) -> "BagBatch":
        """The batch on a device, its floating-point instances in a dtype."""
        bag, position, bags = self.segments
        return BagBatch(
            self.instances.to(device, dtype if self.instances.is_floating_point() else None),
            Segments(bag.to(device), position.to(device), bags),
            self.labels.to(device),
            self.keys.to(device),
        )


def pack(bags: Sequence[Bag], keys: Sequence[int]) -> BagBatch:
    """One ragged batch.

    Args:
        bags: at least one, none of them empty.
        keys: a number per bag that stays the same in every batch, epoch and world size; randomness hangs on it.

    Raises:
        ValueError: a bag has no instance; its pooled value would be undefined.
    """
    for bag in bags:
        if len(bag.instances) == 0:
            raise ValueError(f"bag {bag.slide_id!r} has 0 instances; allowed: at least 1")
    lengths = torch.tensor([len(bag.instances) for bag in bags])
    starts = lengths.cumsum(0) - lengths
    return BagBatch(
        torch.cat([bag.instances for bag in bags]),
        Segments(
            torch.repeat_interleave(torch.arange(len(bags)), lengths),
            torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths),
            len(bags),
        ),
        torch.tensor([bag.label for bag in bags]),
        torch.tensor(list(keys), dtype=torch.int64),
    )


class BagEntry(NamedTuple):
    """What is known of a bag before its instances are read."""

    slide_id: str
    patient_id: str
    label: int
    split: str
    length: int


class Bags:
    """Bags read when asked for and kept while they fit the cache.

    Args:
        entries: one per bag.
        read: the instances of a bag; called from a reading thread.
        cache_bytes: instances kept in memory.
    """

    def __init__(
        self, entries: Sequence[BagEntry], read: Callable[[BagEntry], Tensor], cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.entries = tuple(entries)
        self.lengths = tuple(entry.length for entry in entries)
        self._read = read
        self._cache: dict[int, Bag] = {}
        self._cached_bytes = 0
        self._cache_bytes = cache_bytes

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Bag:
        bag = self._cache.get(index)
        if bag is None:
            entry = self.entries[index]
            bag = Bag(entry.slide_id, entry.patient_id, entry.label, self._read(entry))
            self._keep(index, bag)
        return bag

    def __iter__(self) -> Iterator[Bag]:
        return (self[index] for index in range(len(self)))

    def split(self, name: str) -> list[int]:
        """Indices of the bags of one split."""
        return [index for index, entry in enumerate(self.entries) if entry.split == name]

    def batches(self, groups: Iterable[Sequence[int]]) -> Iterator[BagBatch]:
        """The packed batch of each group of indices; the next one is read while the last is worked on."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="bags") as pool:
            pending: Future[BagBatch] | None = None
            for group in groups:
                following = pool.submit(self._pack, tuple(group))
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()

    def _pack(self, group: Sequence[int]) -> BagBatch:
        return pack([self[index] for index in group], group)

    def _keep(self, index: int, bag: Bag) -> None:
        # bags that do not fit are read again each epoch: evicting others would make every epoch miss every bag
        size = bag.instances.nbytes
        if self._cached_bytes + size <= self._cache_bytes:
            self._cache[index] = bag
            self._cached_bytes += size


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
