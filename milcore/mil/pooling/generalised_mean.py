"""Generalised-mean pooling, between the mean and the maximum, with a learnt exponent."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from milcore.mil.bags.segments import Segments, at_least_fp32
from milcore.mil.pooling.protocol import PoolingShape, ScorelessPooling, Summary
from milcore.mil.pooling.softmax import softmax_weights
from milcore.mil.pooling.sums import lift_exponentials, merge_exponentials

SMALLEST_VALUE = 1e-6
INITIAL_EXPONENT = 3.0


class GeneralisedMeanPooling(ScorelessPooling):
    """Generalised mean: ``z_k = ((1/n) sum_i max(v_ik, 1e-6)^p)^(1/p)``.

    At embedding level only; p >= 1 is learnt. It is the mean at p = 1 and goes to the maximum. Powers are taken as
    ``exp(p log v)`` relative to the largest, so that none overflows: the summary is (largest ``p log v``, sum of
    exponentials relative to it, n). With a parameter u that begins at 0, ``p = 1 + 2 softplus(u) / log 2``, 3 at
    first. A weight is the share of an instance in the sum, meaned over k.

    Source: Radenovic, Tolias, Chum 2019, arXiv 1711.02512, equation 3, one p for all columns and 3 at first; p >= 1
    is our bound.
    """

    def __init__(self, shape: PoolingShape) -> None:
        del shape  # one exponent, whatever the sizes; the signature is the table's
        super().__init__()
        self.exponent = nn.Parameter(torch.zeros(1))

    def power(self) -> Tensor:
        """Exponent p."""
        return 1.0 + (INITIAL_EXPONENT - 1.0) / math.log(2.0) * functional.softplus(self.exponent)

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        del scores
        return lift_exponentials(self._log_powers(values), segments)

    def merge(self, a: Summary, b: Summary) -> Summary:
        return merge_exponentials(a, b)

    def finish(self, summary: Summary) -> Tensor:
        largest, total, count = summary
        return torch.exp((largest + torch.log(total / count)) / self.power())

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del scores
        return softmax_weights(self._log_powers(values), summary, segments).mean(dim=1, keepdim=True)

    def _log_powers(self, values: Tensor) -> Tensor:
        return self.power() * at_least_fp32(values).clamp_min(SMALLEST_VALUE).log()
