"""Sums that summaries of poolings are made of."""

import torch
from torch import Tensor

from milcore.mil.bags.segments import Segments, segment_sum


def sum_and_count(values: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Sum of the rows of each bag, and their number."""
    total = segment_sum(values, segments)
    count = torch.zeros_like(total[:, 0]).index_add_(0, segments.bag, torch.ones_like(segments.bag, dtype=total.dtype))
    return total, count[:, None]


def to_one_reference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum of two reference exponents, and the factors that rescale sums to it."""
    largest = torch.maximum(a, b)
    return largest, torch.exp(a - largest), torch.exp(b - largest)
