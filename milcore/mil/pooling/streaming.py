"""Pooling of a batch in chunks, with recomputation in the backward pass.

Chunk summaries merge to the summary of the batch, so chunks may be lifted one by one. Where their activations exceed
the memory budget, they are discarded and each chunk is lifted again in the backward pass (gradient checkpointing); max
and top-k pooling lift again only the instances that count. Parts of one bag on several ranks merge likewise. The
gradient is that of the whole batch: docs/pooling.md has the proof.

Axes: instance, bag.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from milcore.mil.bags.batch import BagBatch, Chunk
from milcore.mil.pooling.protocol import Monoid, Selection, Summary
from milcore.runtime.malloc import release_freed_memory

CHUNKS_PER_RELEASE = 8

Lift = Callable[[Chunk], Summary]
T = TypeVar("T")


class ChunkPlan(NamedTuple):
    """Chunks of a batch.

    Args:
        rows: of a chunk, at least 1.
        oversized: True where the activations of all chunks exceed the memory budget, so that they are recomputed.
        device: to compute on.
    """

    rows: int
    oversized: bool
    device: torch.device


def pool_batch(pooling: Monoid, lift: Lift, batch: BagBatch, plan: ChunkPlan) -> Summary:
    """Summary of every bag of a batch.

    Args:
        pooling: whose summaries are merged.
        lift: from a chunk to the summaries of its bags; deterministic.
        batch: read chunk by chunk; oversized and with gradients, twice.
        plan: of the chunks.
    """
    if plan.oversized and torch.is_grad_enabled() and isinstance(pooling, Selection):
        with torch.no_grad():
            whole = _pool_chunks(pooling, lift, batch, plan)
        winners = _winners(batch, pooling.winners(whole), plan)
        summary = pooling.of_winners(_pool_chunks(pooling, lift, winners, plan), whole)
    else:
        summary = _pool_chunks(pooling, lift, batch, plan)
    return _merge_over_ranks(pooling, summary) if batch.split_over_ranks else summary


def pool_first(first: Monoid, lift: Lift, batch: BagBatch, plan: ChunkPlan) -> Summary:
    """Summary of the first of two passes over every bag of a batch.

    On several ranks its gradient becomes the mean over them, as that of a parameter: all ranks read the same summary,
    each for its own part of the second pass (docs/pooling.md derives it).
    """
    summary = pool_batch(first, lift, batch, plan)
    if not batch.split_over_ranks:
        return summary
    shared: Summary = _MeanGradient.apply(*summary)  # type: ignore[no-untyped-call]
    return shared


class _MeanGradient(torch.autograd.Function):
    """Identity whose gradient is its mean over the ranks."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        del ctx
        return tuple(each.clone() for each in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        del ctx
        means = [gradient.contiguous() / dist.get_world_size() for gradient in gradients]
        for mean in means:
            dist.all_reduce(mean)
        return tuple(means)


def lift_chunks(lift: Callable[[Chunk], T], batch: BagBatch, plan: ChunkPlan) -> list[T]:
    """Results of a function of all chunks; oversized and with gradients they are recomputed.

    Args:
        lift: deterministic.
        batch: read chunk by chunk.
        plan: of the chunks.
    """
    chunk_number = itertools.count(1)

    def lift_span(span: tuple[int, int]) -> T:
        if plan.oversized and next(chunk_number) % CHUNKS_PER_RELEASE == 0:
            release_freed_memory()
        return lift(batch.chunk(*span, plan.device))

    spans = batch.spans(plan.rows)
    if not (plan.oversized and torch.is_grad_enabled()):
        return [lift_span(span) for span in spans]
    # nothing random happens inside: there is no generator state to put back
    return [checkpoint(lift_span, span, use_reentrant=False, preserve_rng_state=False) for span in spans]


def _pool_chunks(pooling: Monoid, lift: Lift, batch: BagBatch, plan: ChunkPlan) -> Summary:
    return _join(pooling, lift_chunks(lambda chunk: (chunk.first_bag, lift(chunk)), batch, plan))


def _join(pooling: Monoid, parts: Sequence[tuple[int, Summary]]) -> Summary:
    """Join the summaries of consecutive chunks to those of whole bags.

    A bag may extend over any number of chunks.

    Args:
        pooling: whose summaries they are.
        parts: for each chunk the index of its first bag and the summaries of its bags.
    """
    whole: list[Summary] = []
    open_bag, (_, rest) = parts[0][0], parts[0]
    for first, summary in parts[1:]:
        open_bag += len(rest[0]) - 1
        if first == open_bag:  # the last bag of the chunk before continues
            *closed, last = _rows(rest)
            head, *tail = _rows(summary)
            whole.extend(closed)
            rest = concatenate([pooling.merge(last, head), *tail])
        else:
            whole.append(rest)
            rest = summary
        open_bag = first
    return concatenate([*whole, rest])


def _rows(summary: Summary) -> list[Summary]:
    """Split a summary into its first bag, the bags between and the last bag."""
    bags = len(summary[0])
    if bags == 1:
        return [summary]
    sizes = [1, bags - 2, 1] if bags > 2 else [1, 1]
    return list(zip(*(torch.split(each, sizes) for each in summary), strict=True))


def concatenate(parts: Sequence[Summary]) -> Summary:
    """Summaries of bags after one another, from those of groups of bags."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _winners(batch: BagBatch, positions: Int[Tensor, "bag winner"], plan: ChunkPlan) -> BagBatch:
    """The batch reduced to the instances at these positions of their bags."""
    ends = torch.tensor(batch.lengths).cumsum(0)
    # a bag of which a random subset is left has gaps in its positions, so that they are searched for
    bag = torch.repeat_interleave(torch.arange(len(ends)), torch.tensor(batch.lengths))
    places = int(batch.position.max()) + 1
    wanted = positions.cpu() + places * torch.arange(len(ends))[:, None]
    rows = torch.unique(torch.searchsorted(batch.position + places * bag, wanted))
    instances = []
    for start, stop in batch.spans(plan.rows):
        in_chunk = rows[(rows >= start) & (rows < stop)]
        if len(in_chunk):
            instances.append(batch.instances[start:stop][in_chunk - start])
    lengths = torch.bincount(torch.searchsorted(ends, rows, right=True), minlength=len(ends))
    return dataclasses.replace(
        batch,
        instances=torch.cat(instances),
        lengths=tuple(lengths.tolist()),
        position=batch.position[rows],
        places=None if batch.places is None else batch.places[rows],
    )


def _merge_over_ranks(pooling: Monoid, summary: Summary) -> Summary:
    """All-reduce of the summaries of bags that are split over ranks.

    The gradient of a rank's own part is scaled by the number of ranks (docs/pooling.md derives it).
    """
    world_size = dist.get_world_size()
    gathered = [_gather(tensor.detach(), world_size) for tensor in summary]
    parts = list(zip(*gathered, strict=True))
    parts[dist.get_rank()] = tuple(_scale_gradient(tensor, world_size) for tensor in summary)
    return functools.reduce(pooling.merge, parts)


def gather_rows(values: Float[Tensor, "row value"]) -> Float[Tensor, "row value"]:
    """Rows of all ranks, rank after rank.

    The gradient of a rank's own rows is scaled by the number of ranks, as that of its summaries.
    """
    world_size = dist.get_world_size()
    counts = [int(count) for count in _gather(torch.tensor([len(values)], device=values.device), world_size)]
    padded = torch.cat([values.detach(), values.new_zeros(max(counts) - len(values), values.shape[1])])
    parts = [part[:count] for part, count in zip(_gather(padded, world_size), counts, strict=True)]
    parts[dist.get_rank()] = _scale_gradient(values, world_size)
    return torch.cat(parts)


def _gather(values: Tensor, world_size: int) -> list[Tensor]:
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world_size)]
    dist.all_gather(parts, values.contiguous())
    return parts


def _scale_gradient(values: Tensor, factor: float) -> Tensor:
    if not values.requires_grad:
        return values
    scaled = values.view_as(values)
    scaled.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
    return scaled
