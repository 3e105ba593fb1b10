"""Exact leave-one-out predictions of a bag in n log n merges of summaries.

The summary of all but instance i is the merge of those before it and those after it, both by prefix scans; nothing is
subtracted, so there is no cancellation. Chunks are scanned one at a time and merged with the summaries of the chunks
around them: memory stays that of one chunk.

Source of the scan: Hillis, Steele 1986, "Data parallel algorithms".

Axes: instance, output (class).
"""

import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from milcore.mil.bags.batch import Bag, pack
from milcore.mil.model import MILModel
from milcore.mil.pooling.protocol import Summary
from milcore.mil.pooling.streaming import ChunkPlan

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
    batch, pooling = pack([bag], [0]), model.pooling
    plan = plan or model.chunk_plan(batch)
    summaries = [
        pooling.lift(lifted.scores, lifted.values, lifted.chunk.segments) for lifted in model.lift_chunks(batch, plan)
    ]
    before = [None, *itertools.accumulate(summaries[:-1], pooling.merge)]
    after = [None, *itertools.accumulate(summaries[:0:-1], pooling.merge)][::-1]
    outputs = []
    for lifted, *around in zip(model.lift_chunks(batch, plan), before, after, strict=True):
        rows = pooling.lift(lifted.scores, lifted.values, lifted.chunk.segments.each_row())
        others = _all_but_each(rows, pooling.merge)
        outside = [summary for summary in around if summary is not None]
        outputs.append(_output(model, others, outside, len(lifted.scores)))
    return torch.cat(outputs)


def _output(model: MILModel, inside: Summary | None, outside: list[Summary], rows: int) -> Tensor:
    """Outputs from the summaries inside and outside of a chunk.

    Args:
        model: whose classifier reads the merged summaries.
        inside: of the other rows of the chunk, for each row; None where the chunk is one row.
        outside: of the rows before the chunk and after it, as far as there are any.
        rows: of the chunk.
    """
    repeated = [tuple(tensor.expand(rows, *tensor.shape[1:]) for tensor in summary) for summary in outside]
    parts = repeated if inside is None else [inside, *repeated]
    if not parts:
        return torch.full((1, model.target.width(model.classes)), torch.nan)
    *others, summary = parts
    for other in others:
        summary = model.pooling.merge(summary, other)
    return model.output(summary)


def _all_but_each(rows: Summary, merge: Merge) -> Summary | None:
    """Merge of all other rows, for each row; None for one row."""
    if len(rows[0]) == 1:
        return None
    before = _scan(rows, merge)
    after = _reverse(_scan(_reverse(rows), merge))
    first, last = _cut(after, 1, None), _cut(before, None, -1)
    middle = merge(_cut(before, None, -2), _cut(after, 2, None))
    ends = _cut(first, None, 1), _cut(last, -1, None)
    return tuple(torch.cat(each) for each in zip(ends[0], middle, ends[1], strict=True))


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
