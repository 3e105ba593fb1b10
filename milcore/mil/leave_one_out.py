"""Exact leave-one-out predictions of a bag in n log n merges of summaries.

The summary of all but instance i is the merge of those before it and those after it, both by prefix scans; nothing is
subtracted, so there is no cancellation. Chunks are scanned one at a time and merged with the summaries of the chunks
around them: memory stays that of one chunk.

A pooling of two passes is scanned in its first only; in the second the scores and values of the whole bag are kept. One
of whole bags pools the others anew for each instance.

Source of the scan: Hillis, Steele 1986, "Data parallel algorithms".

Axes: instance, output (class).
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from milcore.mil.bags.batch import Bag, BagBatch, pack
from milcore.mil.bags.segments import Segments
from milcore.mil.model import MILModel
from milcore.mil.pooling.protocol import Monoid, Summary, TwoPassPooling, WholeBagPooling
from milcore.mil.pooling.streaming import ChunkPlan, concatenate

Merge = Callable[[Summary, Summary], Summary]


@torch.no_grad()
def leave_one_out(model: MILModel, bag: Bag, plan: ChunkPlan | None = None) -> Float[Tensor, "instance output"]:
    """Output of the bag without each instance, without dropout.

    NaN for the only instance of a bag.

    Args:
        model: in evaluation mode.
        bag: read chunk by chunk, twice.
        plan: of the chunks, by default the model's.
    """
    batch = pack([bag], [0])
    plan = plan or model.chunk_plan(batch)
    if len(batch.instances) == 1:
        return torch.full((1, model.outputs), torch.nan)
    if isinstance(model.pooling, WholeBagPooling):
        rows = torch.arange(len(batch.instances))
        return model.outputs_of_subsets(model.pooling, batch, (rows != row for row in rows), plan)
    if isinstance(model.pooling, TwoPassPooling):
        return torch.cat(list(_outputs_of_two_passes(model, model.pooling, batch, plan)))
    return torch.cat([model.output(summary) for summary in _without_each(model, model.pooling, batch, plan)])


def _without_each(model: MILModel, monoid: Monoid, batch: BagBatch, plan: ChunkPlan) -> Iterator[Summary]:
    """Summaries of a bag without each instance, chunk by chunk."""
    summaries = [lifted.summary(monoid) for lifted in model.lift_chunks(batch, plan)]
    before = [None, *itertools.accumulate(summaries[:-1], monoid.merge)]
    after = [None, *itertools.accumulate(summaries[:0:-1], monoid.merge)][::-1]
    for lifted, *around in zip(model.lift_chunks(batch, plan), before, after, strict=True):
        rows = monoid.lift(lifted.scores, lifted.values, lifted.chunk.segments.each_row())
        outside = [summary for summary in around if summary is not None]
        repeated = [tuple(each.expand(len(rows[0]), *each.shape[1:]) for each in summary) for summary in outside]
        inside = _all_but_each(rows, monoid.merge)
        yield functools.reduce(monoid.merge, repeated if inside is None else [inside, *repeated])


def _outputs_of_two_passes(
    model: MILModel, pooling: TwoPassPooling, batch: BagBatch, plan: ChunkPlan
) -> Iterator[Float[Tensor, "instance output"]]:
    """Outputs of a bag without each instance, in blocks.

    The first pass is merged as above. Its summary changes what the second takes of every other instance, so that the
    second is made anew for each: n^2 instances in all, none of them embedded again.
    """
    instances = len(batch.instances)
    firsts = concatenate(list(_without_each(model, pooling.first, batch, plan)))
    scores, values = concatenate([(lifted.scores, lifted.values) for lifted in model.lift_chunks(batch, plan)])
    others = torch.arange(instances - 1, device=scores.device)
    for block in torch.split(torch.arange(instances, device=scores.device), max(1, plan.rows // instances)):
        rows = (others + (others >= block[:, None])).flatten()
        segments = Segments.whole([instances - 1] * len(block)).to(scores.device)
        first = tuple(each[block] for each in firsts)
        taken = pooling.first.condition(scores[rows], values[rows], first, segments)
        yield model.output(pooling.lift(*taken, segments))


def _all_but_each(rows: Summary, merge: Merge) -> Summary | None:
    """Merge of all other rows, for each row; None for one row."""
    if len(rows[0]) == 1:
        return None
    before = _scan(rows, merge)
    after = _reverse(_scan(_reverse(rows), merge))
    first, last = _cut(after, 1, None), _cut(before, None, -1)
    middle = merge(_cut(before, None, -2), _cut(after, 2, None))
    return concatenate([_cut(first, None, 1), middle, _cut(last, -1, None)])


def _scan(rows: Summary, merge: Merge) -> Summary:
    """Inclusive scan: row i becomes the merge of rows 0 to i."""
    step = 1
    while step < len(rows[0]):
        merged = merge(_cut(rows, None, -step), _cut(rows, step, None))
        rows = tuple(torch.cat([row[:step], rest]) for row, rest in zip(rows, merged, strict=True))
        step *= 2
    return rows


def _cut(rows: Summary, start: int | None, stop: int | None) -> Summary:
    return tuple(each[start:stop] for each in rows)


def _reverse(rows: Summary) -> Summary:
    return tuple(each.flip(0) for each in rows)
