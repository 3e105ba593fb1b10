"""Maxima that summaries of poolings are made of.

Of equal values the one that stands earlier in the bag counts.

Axes: instance, bag, value (columns of which each has its own maximum).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from milcore.mil.bags.segments import Segments, segment_max


def winner_rows(values: Float[Tensor, "instance value"], segments: Segments) -> Int[Tensor, "bag value"]:
    """Row of the first instance of each bag with the largest value.

    For each column.
    """
    rows = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
    is_best = values.detach() == segment_max(values, segments).index_select(0, segments.bag)
    row_if_best = torch.where(is_best, rows, len(values) - 1)
    last = row_if_best.new_full((segments.bags, values.shape[1]), len(values) - 1)
    return last.scatter_reduce(0, segments.bag[:, None].expand_as(values), row_if_best, "amin")


def is_first_winner(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Bool[Tensor, "bag value"]:
    """True where the maximum of two parts is that of the first.

    Args:
        a: summary of a part, which begins with the largest values and their positions.
        b: of the other part.
    """
    return (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] <= b[1]))
