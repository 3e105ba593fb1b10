"""Summaries of softmax-weighted sums, of any number of heads.

Axes: instance, bag, head (column of scores), value (pooled width).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from milcore.mil.bags.segments import Segments, segment_sum, weighted_segment_sum
from milcore.mil.pooling.protocol import Summary
from milcore.mil.pooling.sums import relative_exponentials, to_one_reference


def lift_softmax(
    scores: Float[Tensor, "instance head"], values: Float[Tensor, "instance value"], segments: Segments
) -> Summary:
    """Summaries: (m = max s, sum exp(s - m), sum exp(s - m) v)."""
    largest, exponential = relative_exponentials(scores, segments)
    return largest, segment_sum(exponential, segments), weighted_segment_sum(exponential, values, segments)


def merge_softmax(a: Summary, b: Summary) -> Summary:
    """Summary of two parts of the same bags."""
    largest, a_scale, b_scale = to_one_reference(a[0], b[0])
    total = a_scale * a[1] + b_scale * b[1]
    return largest, total, a_scale[..., None] * a[2] + b_scale[..., None] * b[2]


def softmax_weights(
    scores: Float[Tensor, "instance head"], summary: Summary, segments: Segments
) -> Float[Tensor, "instance head"]:
    """Weight of each instance in its bag, for each head."""
    largest, total = (each.index_select(0, segments.bag) for each in summary[:2])
    return torch.exp(scores - largest) / total
