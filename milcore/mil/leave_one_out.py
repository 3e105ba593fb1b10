"""What a model would say of a bag without each of its instances, exactly, in n log n merges.

The summary of all but instance i is the merge of those before it and those after it, both by prefix scans; nothing is
subtracted, so nothing cancels. Chunks are scanned one at a time and merged with the summaries of the chunks around
them: memory stays that of one chunk.

Source of the scan: Hillis, Steele 1986, "Data parallel algorithms".

Axes: instance, class.
"""

import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from milcore.mil.bags.batch import Bag, pack
from milcore.mil.model import MILModel
from milcore.mil.pooling.pooling import Summary

Merge = Callable[[Summary, Summary], Summary]


@torch.no_grad()
def leave_one_out(model: MILModel, bag: Bag) -> Float[Tensor, "instance class"]:
    """Log-probabilities of the bag without each instance, without dropout; NaN for the only instance of a bag."""
    batch = pack([bag], [0])
    walk = model.chunk_plan(batch)
    spans = batch.spans(walk.rows)
    lift, pooling = model.lifter(batch.instances[:1].dtype, None), model.pooling

    def summaries(span: tuple[int, int], *, each: bool) -> Summary:
        chunk = batch.chunk(*span, walk.device)
        lifted = lift(chunk)
        return pooling.lift(lifted.scores, lifted.values, chunk.segments.each_row() if each else chunk.segments)

    whole = [summaries(span, each=False) for span in spans]
    before = [None, *itertools.accumulate(whole[:-1], pooling.merge)]
    after = [None, *itertools.accumulate(whole[:0:-1], pooling.merge)][::-1]
    said = []
    for span, *around in zip(spans, before, after, strict=True):
        inside = _all_but_each(summaries(span, each=True), pooling.merge)
        said.append(_log_prob(model, inside, [its for its in around if its is not None], span[1] - span[0]))
    return torch.cat(said)


def _log_prob(model: MILModel, inside: Summary | None, outside: list[Summary], rows: int) -> Tensor:
    """Of the merges of a chunk's rows without one, row by row, and the chunks around it."""
    spread = [tuple(each.expand(rows, *each.shape[1:]) for each in its) for its in outside]
    parts = spread if inside is None else [inside, *spread]
    if not parts:
        return torch.full((1, model.classes), torch.nan)
    *others, summary = parts
    for other in others:
        summary = model.pooling.merge(summary, other)
    return model.log_prob(summary)


def _all_but_each(rows: Summary, merge: Merge) -> Summary | None:
    """For each of n rows the merge of the n - 1 others; None where there are none."""
    if len(rows[0]) == 1:
        return None
    before = _scan(rows, merge)
    after = _reverse(_scan(_reverse(rows), merge))
    first, last = _cut(after, 1, None), _cut(before, None, -1)
    middle = merge(_cut(before, None, -2), _cut(after, 2, None))
    ends = _cut(first, None, 1), _cut(last, -1, None)
    return tuple(torch.cat(each) for each in zip(ends[0], middle, ends[1], strict=True))


def _scan(rows: Summary, merge: Merge) -> Summary:
    """Row i becomes the merge of rows 0 to i."""
    step = 1
    while step < len(rows[0]):
        merged = merge(_cut(rows, None, -step), _cut(rows, step, None))
        rows = tuple(torch.cat([each[:step], its]) for each, its in zip(rows, merged, strict=True))
        step *= 2
    return rows


def _cut(rows: Summary, start: int | None, stop: int | None) -> Summary:
    return tuple(each[start:stop] for each in rows)


def _reverse(rows: Summary) -> Summary:
    return tuple(each.flip(0) for each in rows)
