"""Sums that summaries of poolings are made of.

Sums of exponentials are kept relative to the largest exponent, the reference, so that none overflows.
"""

import torch
from torch import Tensor

from milcore.mil.bags.segments import Segments, segment_max, segment_sum


def sum_and_count(values: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Sum of the rows of each bag, and their number."""
    total = segment_sum(values, segments)
    count = torch.zeros_like(total[:, 0]).index_add_(0, segments.bag, torch.ones_like(segments.bag, dtype=total.dtype))
    return total, count[:, None]


def relative_exponentials(exponent: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Reference of each bag, and the exponential of each row relative to it."""
    largest = segment_max(exponent, segments)
    return largest, torch.exp(exponent - largest.index_select(0, segments.bag))


def to_one_reference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum of two reference exponents, and the factors that rescale sums to it."""
    largest = torch.maximum(a, b)
    return largest, torch.exp(a - largest), torch.exp(b - largest)


def merge_relative_sums(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Reference and sum of two parts, from those that their summaries begin with."""
    largest, a_scale, b_scale = to_one_reference(a[0], b[0])
    return largest, a_scale * a[1] + b_scale * b[1]


def lift_exponentials(exponent: Tensor, segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
    """Summaries: (m = max x, sum exp(x - m), n)."""
    largest, exponential = relative_exponentials(exponent, segments)
    return largest, *sum_and_count(exponential, segments)


def merge_exponentials(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Summary of two parts of the same bags."""
    return *merge_relative_sums(a, b), a[2] + b[2]
