"""Bags and the batches that pack them, ragged and never padded."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from milcore.mil.bags.rows import ChainedRows, Rows, RowSlice, RowSubset
from milcore.mil.bags.segments import Segments, ragged


@dataclass(frozen=True, slots=True, eq=False)
class Bag:
    """Instances of one slide or patient, with its label.

    Args:
        bag_id: id of the slide or patient.
        patient_id: of the patient.
        label: class index.
        instances: in the order of the store.
        places: number of the slide in the bag, y and x of each instance, in um, or in level-0 px where a slide's scale
            is unknown; None where they were not read.
    """

    bag_id: str
    patient_id: str
    label: int
    instances: Rows
    places: Float[Tensor, "instance 3"] | None = None


class Chunk(NamedTuple):
    """Consecutive rows of a batch, on a device.

    Args:
        instances: of these rows.
        segments: of the bags they belong to.
        bag_keys: of the same bags.
        first_bag: index in the batch of the first of these bags.
        rows: of the batch.
    """

    instances: Tensor
    segments: Segments
    bag_keys: Int[Tensor, " bag"]
    first_bag: int
    rows: slice


@dataclass(frozen=True, slots=True, eq=False)
class BagBatch:
    """Bags packed one after another.

    Args:
        instances: all rows.
        lengths: rows of each bag.
        position: of each row in its bag.
        labels: class of each bag.
        keys: a number per bag that is the same in every batch, epoch and world size; the key of its random numbers.
        split_over_ranks: True where every rank has a part of each of these bags.
        longest: instances of the largest of these bags, the parts of all ranks together.
        places: of each row, as of ``Bag``; None where a bag has none.
    """

    instances: Rows
    lengths: tuple[int, ...]
    position: Int[Tensor, " instance"]
    labels: Int[Tensor, " bag"]
    keys: Int[Tensor, " bag"]
    split_over_ranks: bool
    longest: int
    places: Float[Tensor, "instance 3"] | None

    def spans(self, rows: int) -> list[tuple[int, int]]:
        """Start and stop (exclusive) of the chunks of at most so many rows."""
        total = len(self.instances)
        return [(start, min(start + rows, total)) for start in range(0, total, rows)]

    def chunk(self, start: int, stop: int, device: torch.device) -> Chunk:
        """Chunk of rows ``start`` to ``stop`` (exclusive), on a device."""
        lengths = np.asarray(self.lengths, dtype=np.int64)
        ends = lengths.cumsum()
        first, last = (int(np.searchsorted(ends, row, side="right")) for row in (start, stop - 1))
        bags = slice(first, last + 1)
        lengths_in_chunk = np.minimum(ends[bags], stop) - np.maximum(ends[bags] - lengths[bags], start)
        return Chunk(
            self.instances[start:stop].to(device, non_blocking=True),
            Segments.of(lengths_in_chunk, self.position[start:stop], self.longest).to(device),
            self.keys[bags].to(device, non_blocking=True),
            first,
            slice(start, stop),
        )

    def subsample(self, most: int, seed: int, epoch: int) -> "BagBatch":
        """Random subset of at most ``most`` instances of each bag.

        The subset depends on (seed, epoch, bag) alone, not on the other bags of the batch.
        """
        if max(self.lengths) <= most:
            return self
        indices_of_bag = [
            np.arange(length) if length <= most else _draw(length, most, [seed, epoch, int(key)])
            for length, key in zip(self.lengths, self.keys, strict=True)
        ]
        begins = np.cumsum(self.lengths) - self.lengths
        rows = torch.from_numpy(
            np.concatenate([begin + indices for begin, indices in zip(begins, indices_of_bag, strict=True)])
        )
        return replace(
            self,
            instances=RowSubset(self.instances, rows),
            lengths=tuple(len(indices) for indices in indices_of_bag),
            position=self.position[rows],
            longest=most,
            places=None if self.places is None else self.places[rows],
        )

    def rank_slice(self, rank: int, world_size: int) -> "BagBatch":
        """Part of a rank: each bag is cut into equal runs, one per rank.

        Raises:
            ValueError: a bag has fewer instances than there are ranks.
        """
        if min(self.lengths) < world_size:
            raise ValueError(
                f"bag: expected at least {world_size} instances to split over {world_size} ranks, got "
                f"{min(self.lengths)}; allowed: at least one instance per rank"
            )
        cuts = [(length * rank // world_size, length * (rank + 1) // world_size) for length in self.lengths]
        begins = [end - length for end, length in zip(itertools.accumulate(self.lengths), self.lengths, strict=True)]
        runs = [(begin + low, begin + high) for begin, (low, high) in zip(begins, cuts, strict=True)]
        return BagBatch(
            ChainedRows([RowSlice(self.instances, *run) for run in runs]),
            tuple(high - low for low, high in cuts),
            torch.cat([self.position[slice(*run)] for run in runs]),
            self.labels,
            self.keys,
            split_over_ranks=True,
            longest=self.longest,
            places=None if self.places is None else torch.cat([self.places[slice(*run)] for run in runs]),
        )


def _draw(length: int, count: int, seed: Sequence[int]) -> Int[np.ndarray, " instance"]:
    return np.sort(np.random.default_rng(seed).choice(length, count, replace=False))


def pack(bags: Sequence[Bag], keys: Sequence[int]) -> BagBatch:
    """Pack whole bags into one ragged batch.

    Args:
        bags: at least one, none of them empty.
        keys: see ``BagBatch``.

    Raises:
        ValueError: a bag has no instance; its pooled value would be undefined.
    """
    for bag in bags:
        if len(bag.instances) == 0:
            raise ValueError(f"bag {bag.bag_id!r}: expected at least 1 instance, got 0; allowed: 1, 2, …")
    lengths = np.array([len(bag.instances) for bag in bags], dtype=np.int64)
    places = [bag.places for bag in bags if bag.places is not None]
    return BagBatch(
        bags[0].instances if len(bags) == 1 else ChainedRows([bag.instances for bag in bags]),
        tuple(lengths.tolist()),
        torch.from_numpy(ragged(lengths)[1]),
        torch.tensor([bag.label for bag in bags]),
        torch.tensor(list(keys), dtype=torch.int64),
        split_over_ranks=False,
        longest=int(lengths.max()),
        places=torch.cat(places) if len(places) == len(bags) else None,
    )
