"""Summaries of a batch from chunks of it: kept in the graph, or recomputed in the backward pass in constant memory.

Chunk summaries merge to the batch's, so chunks may be lifted one by one. When their activations would not fit, each is
thrown away and lifted again when its gradient is due; max pooling lifts again only the instances that won. The gradient
is that of the whole batch and arrives at every parameter once, so a data-parallel wrapper sees nothing unusual. Parts
of one bag on several workers merge likewise.

Axes: instance, bag.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from milcore.mil.bags.batch import BagBatch, Chunk
from milcore.mil.pooling.pooling import MaxPooling, Pooling, Summary
from milcore.runtime.malloc import release_freed_memory

CHUNKS_PER_RELEASE = 8

Lift = Callable[[Chunk], Summary]


class ChunkPlan(NamedTuple):
    """How a batch is walked over: rows of a chunk, whether the activations of all exceed the budget, and where."""

    rows: int
    oversized: bool
    device: torch.device


def pool_batch(pooling: Pooling, lift: Lift, batch: BagBatch, walk: ChunkPlan) -> Summary:
    """The summary of every bag of a batch.

    Args:
        pooling: whose summaries are merged.
        lift: from a chunk to the summaries of its bags; the same again for the same chunk.
        batch: read chunk by chunk; oversized and with gradients, twice.
        walk: how.
    """
    if walk.oversized and torch.is_grad_enabled() and isinstance(pooling, MaxPooling):
        with torch.no_grad():
            first = _walk(pooling, lift, batch, walk)
        summary = _walk(pooling, lift, _winners(batch, pooling.winners(first), walk), walk)
    else:
        summary = _walk(pooling, lift, batch, walk)
    return _merge_over_ranks(pooling, summary) if batch.split_over_ranks else summary


def _walk(pooling: Pooling, lift: Lift, batch: BagBatch, walk: ChunkPlan) -> Summary:
    lifted = itertools.count(1)

    def lift_span(span: tuple[int, int]) -> tuple[int, Summary]:
        if walk.oversized and next(lifted) % CHUNKS_PER_RELEASE == 0:
            release_freed_memory()
        chunk = batch.chunk(*span, walk.device)
        return chunk.first_bag, lift(chunk)

    spans = batch.spans(walk.rows)
    if not (walk.oversized and torch.is_grad_enabled()):
        return _join(pooling, [lift_span(span) for span in spans])
    # nothing random happens inside: there is no generator state to put back
    return _join(
        pooling, [checkpoint(lift_span, span, use_reentrant=False, preserve_rng_state=False) for span in spans]
    )


def _join(pooling: Pooling, parts: Sequence[tuple[int, Summary]]) -> Summary:
    """Summaries of whole bags from those of consecutive chunks; a bag may go on over any number of chunks.

    Args:
        pooling: whose summaries they are.
        parts: for each chunk the number of its first bag and the summaries of its bags.
    """
    whole: list[Summary] = []
    open_bag, (_, rest) = parts[0][0], parts[0]
    for first, summary in parts[1:]:
        open_bag += len(rest[0]) - 1
        if first == open_bag:  # the last bag of the chunk before goes on here
            *closed, last = _rows(rest)
            head, *tail = _rows(summary)
            whole.extend(closed)
            rest = _stack([pooling.merge(last, head), *tail])
        else:
            whole.append(rest)
            rest = summary
        open_bag = first
    return _stack([*whole, rest])


def _rows(summary: Summary) -> list[Summary]:
    """First, middle and last bags of a summary, as far as there are any."""
    bags = len(summary[0])
    if bags == 1:
        return [summary]
    sizes = [1, bags - 2, 1] if bags > 2 else [1, 1]
    return list(zip(*(torch.split(each, sizes) for each in summary), strict=True))


def _stack(parts: Sequence[Summary]) -> Summary:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _winners(batch: BagBatch, places: Int[Tensor, "bag value"], walk: ChunkPlan) -> BagBatch:
    """The batch without the instances that are at none of these places of their bags."""
    ends = torch.tensor(batch.lengths).cumsum(0)
    starts = ends - torch.tensor(batch.lengths)
    rows = torch.unique(places.cpu() + (starts - batch.position[starts])[:, None])
    found = []
    for start, stop in batch.spans(walk.rows):
        here = rows[(rows >= start) & (rows < stop)]
        if len(here):
            found.append(batch.instances[start:stop][here - start])
    lengths = torch.bincount(torch.searchsorted(ends, rows, right=True), minlength=len(ends))
    return dataclasses.replace(
        batch, instances=torch.cat(found), lengths=tuple(lengths.tolist()), position=batch.position[rows]
    )


def _merge_over_ranks(pooling: Pooling, summary: Summary) -> Summary:
    """The summary of bags whose parts lie on all workers, on every worker.

    Every worker then computes the same loss. The gradient of its own part is all that reaches its instances; it is
    scaled by the number of workers, because a data-parallel wrapper takes the mean where the sum over parts is due.
    """
    world_size = dist.get_world_size()
    gathered = [_gather(each.detach(), world_size) for each in summary]
    parts = list(zip(*gathered, strict=True))
    parts[dist.get_rank()] = tuple(_scale_gradient(each, world_size) for each in summary)
    return functools.reduce(pooling.merge, parts)


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
