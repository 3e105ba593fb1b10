"""Permutation-invariant pooling of instances into bags, as a monoid over ragged batches.

Every pooling is three functions: ``lift`` takes instances to one summary per bag, ``merge`` joins the summaries of two
parts of the same bags (associative, commutative), ``finish`` turns a summary into the pooled value. A bag may therefore
be summarised whole, in chunks or on several workers, with one result.

At embedding level the pooled values are instance embeddings. At instance level they come from one logit per instance
and class, and pooling acts on its probability: ``instance_values`` makes the values to pool and ``instance_log_prob``
reads the pooled value as (log(1 - theta), log theta). POOLING_LEVELS of the config has the levels of each.

Axes: instance, bag, key (embedding width), value (pooled width), head (column of scores; 0 of them where a pooling
needs none), class (1 where there are two).

Source: Ilse, Tomczak, Welling 2018, arXiv 1802.04712, section 2; others are named by their class.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from milcore.config import PoolingName
from milcore.mil.bags.segments import Segments, at_least_fp32, segment_sum
from milcore.mil.pooling.additive import AdditivePooling
from milcore.mil.pooling.attention import AttentionScore
from milcore.mil.pooling.dsmil import DualStreamPooling
from milcore.mil.pooling.dtfd import PseudoBagPooling
from milcore.mil.pooling.generalised_mean import GeneralisedMeanPooling
from milcore.mil.pooling.maxima import is_first_winner, winner_rows
from milcore.mil.pooling.multi_head import MultiHeadAttentionPooling
from milcore.mil.pooling.probability import SMALLEST_PROBABILITY, log_of, log_sigmoids, probabilities
from milcore.mil.pooling.protocol import (
    Pooling,
    PoolingShape,
    ScorelessPooling,
    Scorer,
    Summary,
    WholeBagPooling,
)
from milcore.mil.pooling.softmax import lift_softmax, merge_softmax, softmax_weights
from milcore.mil.pooling.sums import lift_exponentials, merge_exponentials, sum_and_count
from milcore.mil.pooling.top_k import TopKPooling
from milcore.mil.pooling.transmil import TransformerPooling


class MaxPooling(ScorelessPooling):
    """``z_k = max_i v_ik``; among equal values the first instance of the bag counts.

    At instance level ``theta = max_i p_i``. The weight of an instance is the share of columns in which it is the
    maximum.

    Source: Ilse et al. 2018, section 2.1 and equation 5.
    """

    def __init__(self, shape: PoolingShape) -> None:
        del shape  # nothing to learn; the signature is the table's
        super().__init__()

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        del scores
        winner = winner_rows(values, segments)
        return at_least_fp32(values.gather(0, winner)), segments.position[winner]

    def merge(self, a: Summary, b: Summary) -> Summary:
        take_a = is_first_winner(a, b)
        return tuple(torch.where(take_a, *pair) for pair in zip(a, b, strict=True))

    def finish(self, summary: Summary) -> Tensor:
        return summary[0]

    def winners(self, summary: Summary) -> Int[Tensor, "bag value"]:
        """Positions in their bags of the instances with the largest values."""
        return summary[1]

    def of_winners(self, winners: Summary, whole: Summary) -> Summary:
        """Summary of the winners, which is that of the bag."""
        del whole
        return winners

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del scores, values
        value, position = summary
        is_best = position[segments.bag] == segments.position[:, None]
        return is_best.to(value.dtype).mean(dim=1, keepdim=True)

    def instance_values(self, logit: Tensor) -> Tensor:
        return logit

    def instance_log_prob(self, pooled: Tensor) -> Tensor:
        return log_sigmoids(pooled).clamp_min(math.log(SMALLEST_PROBABILITY))


class _AveragePooling(ScorelessPooling):
    """Mean of the values; at instance level, of probabilities.

    The summary is (sum of the values, n).
    """

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        del scores
        return sum_and_count(values, segments)

    def merge(self, a: Summary, b: Summary) -> Summary:
        return a[0] + b[0], a[1] + b[1]

    def finish(self, summary: Summary) -> Tensor:
        return summary[0] / summary[1]

    def instance_values(self, logit: Tensor) -> Tensor:
        return probabilities(logit)


class MeanPooling(_AveragePooling):
    """``z = (1/n) sum_i v_i``; at instance level ``theta = (1/n) sum_i p_i``.

    Source: Ilse et al. 2018, section 2.3.
    """

    def __init__(self, shape: PoolingShape) -> None:
        del shape  # nothing to learn; the signature is the table's
        super().__init__()

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del scores, values
        return 1.0 / summary[1][segments.bag]

    def instance_log_prob(self, pooled: Tensor) -> Tensor:
        return log_of(pooled)


class LogSumExpPooling(ScorelessPooling):
    """Log-sum-exp: ``z_k = (1/r) log((1/n) sum_i exp(r v_ik))``.

    It is between the mean (r to 0) and the maximum (r to infinity). At instance level v is p, and p - 1 for theta - 1.
    The summary is (largest ``r v``, sum of exponentials relative to it, n). A weight is ``exp(r v_ik) / sum_j exp(r
    v_jk)``, meaned over k.

    Source: Ramon, De Raedt 2000, "Multi instance neural networks"; Pinheiro, Collobert 2015, arXiv 1411.6228, whose
    r = 5 is the default.
    """

    def __init__(self, shape: PoolingShape) -> None:
        super().__init__()
        self.sharpness = shape.lse_sharpness

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        del scores
        return lift_exponentials(self.sharpness * at_least_fp32(values), segments)

    def merge(self, a: Summary, b: Summary) -> Summary:
        return merge_exponentials(a, b)

    def finish(self, summary: Summary) -> Tensor:
        largest, total, count = summary
        return (largest + torch.log(total / count)) / self.sharpness

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del scores
        exponent = self.sharpness * at_least_fp32(values)
        return softmax_weights(exponent, summary, segments).mean(dim=1, keepdim=True)

    def instance_values(self, logit: Tensor) -> Tensor:
        return torch.cat([-torch.sigmoid(-logit), torch.sigmoid(logit)], dim=1)

    def instance_log_prob(self, pooled: Tensor) -> Tensor:
        below_one, theta = pooled.chunk(2, dim=1)
        return log_of(torch.cat([-below_one, theta], dim=1))


class NoisyOrPooling(ScorelessPooling):
    """Noisy-or of probabilities: ``theta = 1 - prod_i (1 - p_i)``.

    At instance level only. The summary is ``sum_i -log(1 - p_i)``. With ``p = sigmoid(v)``, ``-log(1 - p) =
    softplus(v)``, which is finite for every v.

    Source: Maron, Lozano-Perez 1998, "A framework for multiple-instance learning"; Ilse et al. 2018, section 2.1.
    """

    def __init__(self, shape: PoolingShape) -> None:
        del shape  # nothing to learn; the signature is the table's
        super().__init__()

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        del scores
        return (segment_sum(values, segments),)

    def merge(self, a: Summary, b: Summary) -> Summary:
        return (a[0] + b[0],)

    def finish(self, summary: Summary) -> Tensor:
        return summary[0]

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del scores, values, summary, segments
        return None

    def instance_values(self, logit: Tensor) -> Tensor:
        return functional.softplus(at_least_fp32(logit))

    def instance_log_prob(self, pooled: Tensor) -> Tensor:
        lowest = math.log(SMALLEST_PROBABILITY)
        return torch.stack([(-pooled).clamp_min(lowest), _log_of_one_minus_exp(pooled)], dim=1)


class NoisyAndPooling(_AveragePooling):
    """Noisy-and of probabilities, at instance level only.

    ``theta = (s(a (m - b)) - s(-a b)) / (s(a (1 - b)) - s(-a b))`` with m the mean of p and s the sigmoid. a is fixed;
    b, one per class, is learnt as the sigmoid of a parameter, so it stays between 0 and 1 (deviation from the source,
    which learns b itself).

    Source: Kraus, Ba, Frey 2016, arXiv 1511.05286, the noisy-AND pooling function.
    """

    def __init__(self, shape: PoolingShape) -> None:
        super().__init__()
        self.slope = shape.noisy_and_slope
        self.threshold_logit = nn.Parameter(torch.zeros(shape.classes))

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del scores, values, summary, segments
        return None

    def instance_log_prob(self, pooled: Tensor) -> Tensor:
        # both differences of sigmoids by s(x) - s(y) = s(x) s(-y) (1 - exp(y - x)), which does not cancel
        a, b = self.slope, torch.sigmoid(self.threshold_logit)
        negative, positive = pooled.chunk(2, dim=1)
        whole = -math.expm1(-a)
        theta = torch.sigmoid(a * (positive - b)) * -torch.expm1(-a * positive) / (torch.sigmoid(a * (1 - b)) * whole)
        against = torch.sigmoid(a * (b - positive)) * -torch.expm1(-a * negative) / (torch.sigmoid(a * b) * whole)
        return log_of(torch.cat([against, theta], dim=1))


class SoftmaxPooling(nn.Module):
    """Attention pooling: ``z = sum_i a_i v_i`` with ``a = softmax(s)``.

    The summary is (m = max s, sum exp(s - m), sum exp(s - m) v). With a head per class, head c pools for class c.
    Scores are kept in at least fp32, so that half-precision products do not coarsen the softmax.

    Source: Ilse et al. 2018, equation 7.
    """

    def __init__(self, shape: PoolingShape, *, gated: bool) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention = AttentionScore(shape.width, shape.attention_width, shape.heads, gated=gated)

    def scorer(self, dtype: torch.dtype) -> Scorer:
        return self.attention.scorer(dtype)

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        return lift_softmax(scores, values, segments)

    def merge(self, a: Summary, b: Summary) -> Summary:
        return merge_softmax(a, b)

    def finish(self, summary: Summary) -> Tensor:
        return (summary[2] / summary[1][..., None]).flatten(1)

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del values
        return softmax_weights(scores, summary, segments)

    def instance_values(self, logit: Tensor) -> Tensor:
        return probabilities(logit)

    def instance_log_prob(self, pooled: Tensor) -> Tensor:
        of_heads = log_of(pooled.reshape(len(pooled) * self.heads, -1))
        if self.heads == 1:
            return of_heads
        return torch.diagonal(of_heads.reshape(len(pooled), self.heads, 2, self.heads), dim1=1, dim2=3)


def _log_of_one_minus_exp(x: Tensor) -> Tensor:
    """``log max(1 - exp(-x), 1e-7)`` for x >= 0, without cancellation."""
    return (-torch.expm1(-x)).clamp_min(SMALLEST_PROBABILITY).log()


def _clam(shape: PoolingShape, *, head_per_class: bool) -> SoftmaxPooling:
    """CLAM's gated attention; its loss of instances is a row of AUXILIARY_LOSSES.

    Source: Lu et al. 2021, arXiv 2004.09666.
    """
    return SoftmaxPooling(shape._replace(heads=shape.classes if head_per_class else 1), gated=True)


POOLINGS: dict[PoolingName, Callable[[PoolingShape], Pooling | WholeBagPooling]] = {
    "max": MaxPooling,
    "mean": MeanPooling,
    "lse": LogSumExpPooling,
    "noisy_or": NoisyOrPooling,
    "noisy_and": NoisyAndPooling,
    "topk": TopKPooling,
    "gem": GeneralisedMeanPooling,
    "attention": partial(SoftmaxPooling, gated=False),
    "gated_attention": partial(SoftmaxPooling, gated=True),
    "additive": AdditivePooling,
    "multi_head_attention": MultiHeadAttentionPooling,
    "dsmil": DualStreamPooling,
    "clam_sb": partial(_clam, head_per_class=False),
    "clam_mb": partial(_clam, head_per_class=True),
    "transmil": TransformerPooling,
    "dtfd": PseudoBagPooling,
}
# poolings with a logit and a head for each class, of two classes too, which share one elsewhere
LOGIT_PER_CLASS: tuple[PoolingName, ...] = ("clam_mb",)
