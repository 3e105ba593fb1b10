"""Permutation-invariant pooling of instances into bags, as a monoid over ragged batches.

Every pooling is three functions: ``lift`` takes instances to one summary per bag, ``merge`` joins the summaries of two
parts of the same bags (associative, commutative), ``finish`` turns a summary into the pooled value. A bag may therefore
be summarised whole, in chunks or on several workers, with one result. Nothing is padded; bags are segments of one
packed tensor.

At embedding level the pooled values are instance embeddings. At instance level they come from one logit per instance,
and pooling acts on its probability: ``instance_values`` makes the values to pool and ``instance_log_prob`` reads the
pooled value as (log(1 - theta), log theta).

Axes: instance, bag, key (embedding width), value (pooled width), attention (attention width).

Source: Ilse, Tomczak, Welling 2018, arXiv 1802.04712, section 2.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from milcore.config import PoolingName

SMALLEST_PROBABILITY = 1e-7


class Segments(NamedTuple):
    """Which bag each packed instance belongs to, and where in it."""

    bag: Int[Tensor, " instance"]
    position: Int[Tensor, " instance"]
    bags: int


@runtime_checkable
class Pooling(Protocol):
    """The contract of a row of POOLINGS; a summary is a tuple of tensors whose first axis is the bag."""

    def lift(
        self, keys: Float[Tensor, "instance key"], values: Float[Tensor, "instance value"], segments: Segments
    ) -> tuple[Tensor, ...]:
        """Summaries of the given instances, one per bag."""
        ...

    def merge(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The summary of both parts."""
        ...

    def finish(self, summary: tuple[Tensor, ...]) -> Float[Tensor, "bag value"]:
        """The pooled value of each bag."""
        ...

    def weights(
        self, keys: Float[Tensor, "instance key"], summary: tuple[Tensor, ...], segments: Segments
    ) -> Float[Tensor, " instance"]:
        """What share of its bag's pooled value each instance gave; sums to 1 in every bag."""
        ...

    def instance_values(self, logit: Float[Tensor, "instance 1"]) -> Float[Tensor, "instance value"]:
        """The values pooled at instance level."""
        ...

    def instance_log_prob(self, pooled: Float[Tensor, "bag value"]) -> Float[Tensor, "bag 2"]:
        """(log(1 - theta), log theta) from the pooled values of the instance level."""
        ...


def segment_sum(values: Float[Tensor, "instance value"], segments: Segments) -> Float[Tensor, "bag value"]:
    """Sums of the rows of each bag."""
    return values.new_zeros(segments.bags, values.shape[1]).index_add(0, segments.bag, values)


def segment_max(values: Float[Tensor, "instance value"], segments: Segments) -> Float[Tensor, "bag value"]:
    """Largest row entries of each bag, without a gradient; -inf for a bag that has no instance here."""
    values = values.detach()
    lowest = values.new_full((segments.bags, values.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, segments.bag[:, None].expand_as(values), values, "amax")


def log_sigmoids(logit: Float[Tensor, "row 1"]) -> Float[Tensor, "row 2"]:
    """(log(1 - p), log p) for p = sigmoid(logit)."""
    return torch.cat([functional.logsigmoid(-logit), functional.logsigmoid(logit)], dim=1)


def probabilities(logit: Float[Tensor, "row 1"]) -> Float[Tensor, "row 2"]:
    """(1 - p, p) for p = sigmoid(logit), each without cancellation."""
    return torch.cat([torch.sigmoid(-logit), torch.sigmoid(logit)], dim=1)


def log_of(probability: Float[Tensor, "bag 2"]) -> Float[Tensor, "bag 2"]:
    """``log max(p, 1e-7)``: one certain and wrong bag cannot rule the loss, and no gradient is infinite."""
    return probability.clamp_min(SMALLEST_PROBABILITY).log()


class MaxPooling(nn.Module):
    """``z_k = max_i v_ik``; among equal values the first instance of the bag wins.

    At instance level ``theta = max_i p_i``. A weight is the share of the value's columns that the instance won.

    Source: Ilse et al. 2018, section 2.1 and equation 5.
    """

    def __init__(self, width: int, attention_width: int) -> None:
        del width, attention_width  # nothing to learn; the signature is the table's
        super().__init__()

    def lift(self, keys: Tensor, values: Tensor, segments: Segments) -> tuple[Tensor, ...]:
        del keys
        best = segment_max(values, segments)
        rows = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
        winner_or_none = torch.where(values.detach() == best[segments.bag], rows, len(values))
        winner = winner_or_none.new_full(best.shape, len(values)).scatter_reduce(
            0, segments.bag[:, None].expand_as(values), winner_or_none, "amin"
        )
        absent = winner == len(values)
        row = winner.masked_fill(absent, 0)
        value = values.gather(0, row).masked_fill(absent, -torch.inf)
        position = segments.position[row].masked_fill(absent, torch.iinfo(torch.int64).max)
        return value, position

    def merge(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (a_value, a_position), (b_value, b_position) = a, b
        take_a = (a_value > b_value) | ((a_value == b_value) & (a_position <= b_position))
        return torch.where(take_a, a_value, b_value), torch.where(take_a, a_position, b_position)

    def finish(self, summary: tuple[Tensor, ...]) -> Tensor:
        return summary[0]

    def weights(self, keys: Tensor, summary: tuple[Tensor, ...], segments: Segments) -> Tensor:
        _, position = summary
        won = position[segments.bag] == segments.position[:, None]
        return won.to(keys.dtype).mean(dim=1)

    def instance_values(self, logit: Tensor) -> Tensor:
        return logit

    def instance_log_prob(self, pooled: Tensor) -> Tensor:
        return log_sigmoids(pooled).clamp_min(math.log(SMALLEST_PROBABILITY))


class MeanPooling(nn.Module):
    """``z = (1/n) sum_i v_i``; at instance level ``theta = (1/n) sum_i p_i``.

    Source: Ilse et al. 2018, section 2.3.
    """

    def __init__(self, width: int, attention_width: int) -> None:
        del width, attention_width  # nothing to learn; the signature is the table's
        super().__init__()

    def lift(self, keys: Tensor, values: Tensor, segments: Segments) -> tuple[Tensor, ...]:
        del keys
        return segment_sum(values, segments), segment_sum(torch.ones_like(values[:, :1]), segments)

    def merge(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return a[0] + b[0], a[1] + b[1]

    def finish(self, summary: tuple[Tensor, ...]) -> Tensor:
        return summary[0] / summary[1]

    def weights(self, keys: Tensor, summary: tuple[Tensor, ...], segments: Segments) -> Tensor:
        del keys
        return 1.0 / summary[1][segments.bag, 0]

    def instance_values(self, logit: Tensor) -> Tensor:
        return probabilities(logit)

    def instance_log_prob(self, pooled: Tensor) -> Tensor:
        return log_of(pooled)


class AttentionScore(nn.Module):
    """``s = w^T tanh(V h)``, or gated ``s = w^T (tanh(V h) * sigmoid(U h))``.

    The score has no bias: a constant cancels in the softmax, so its gradient would be rounding noise that an adaptive
    optimiser turns into steps.

    Source: Ilse et al. 2018, equations 8 and 9, with biases in V and U as in the authors' code.
    """

    def __init__(self, width: int, attention_width: int, *, gated: bool) -> None:
        super().__init__()
        self.content = nn.Linear(width, attention_width)
        self.gate = nn.Linear(width, attention_width) if gated else None
        self.score = nn.Linear(attention_width, 1, bias=False)

    def forward(self, keys: Float[Tensor, "instance key"]) -> Float[Tensor, "instance 1"]:
        """Scores before the softmax."""
        hidden = torch.tanh(self.content(keys))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(keys))
        score: Tensor = self.score(hidden)
        return score


class SoftmaxPooling(nn.Module):
    """``z = sum_i a_i v_i`` with ``a = softmax(s)``; the summary is (m = max s, sum exp(s - m), sum exp(s - m) v).

    Scores are kept in at least fp32, so that half-precision products do not coarsen the softmax.

    Source: Ilse et al. 2018, equation 7.
    """

    def __init__(self, score: AttentionScore) -> None:
        super().__init__()
        self.attention = score

    def lift(self, keys: Tensor, values: Tensor, segments: Segments) -> tuple[Tensor, ...]:
        score = self._scores(keys)
        largest = segment_max(score, segments)
        exponential = torch.exp(score - largest[segments.bag])
        return largest, segment_sum(exponential, segments), segment_sum(exponential * values, segments)

    def merge(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        largest = torch.maximum(a[0], b[0])
        a_scale, b_scale = torch.exp(a[0] - largest), torch.exp(b[0] - largest)
        return largest, a_scale * a[1] + b_scale * b[1], a_scale * a[2] + b_scale * b[2]

    def finish(self, summary: tuple[Tensor, ...]) -> Tensor:
        return summary[2] / summary[1]

    def weights(self, keys: Tensor, summary: tuple[Tensor, ...], segments: Segments) -> Tensor:
        largest, total, _ = summary
        return (torch.exp(self._scores(keys) - largest[segments.bag]) / total[segments.bag])[:, 0]

    def instance_values(self, logit: Tensor) -> Tensor:
        return probabilities(logit)

    def instance_log_prob(self, pooled: Tensor) -> Tensor:
        return log_of(pooled)

    def _scores(self, keys: Tensor) -> Tensor:
        score: Tensor = self.attention(keys)
        return score if score.dtype == torch.float64 else score.float()


def attention_pooling(width: int, attention_width: int) -> SoftmaxPooling:
    """Softmax pooling by the tanh score."""
    return SoftmaxPooling(AttentionScore(width, attention_width, gated=False))


def gated_attention_pooling(width: int, attention_width: int) -> SoftmaxPooling:
    """Softmax pooling by the gated score."""
    return SoftmaxPooling(AttentionScore(width, attention_width, gated=True))


POOLINGS: dict[PoolingName, Callable[[int, int], Pooling]] = {
    "max": MaxPooling,
    "mean": MeanPooling,
    "attention": attention_pooling,
    "gated_attention": gated_attention_pooling,
}


def make_pooling(name: PoolingName, width: int, attention_width: int) -> Pooling:
    """The pooling of that name for embeddings of that width."""
    return POOLINGS[name](width, attention_width)
