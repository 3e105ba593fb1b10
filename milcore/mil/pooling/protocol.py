"""Contract of a pooling, and the sizes it is made of.

Axes: instance, bag, key (embedding width), value (pooled width), head (column of scores), class, pooled.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from milcore.mil.bags.segments import Segments

Summary = tuple[Tensor, ...]
Scorer = Callable[[Tensor], Tensor]


class PoolingShape(NamedTuple):
    """Sizes and settings of a pooling.

    Args:
        width: of an instance embedding.
        attention_width: of the attention network.
        heads: attention branches, 1 or one per class.
        classes: logits of an instance, where instances have them: one where there are two classes.
        lse_sharpness: r of log-sum-exp, above 0.
        noisy_and_slope: a of noisy-and, above 0.
        topk_instances: k of top-k, a count, or below 1 a share of the bag.
        pooling_heads: of multi-head attention and TransMIL, a divisor of width.
        pooling_queries: of multi-head attention.
        clam_instances: k of CLAM's loss of instances.
        clam_loss_weight: of CLAM's loss of instances, 0 to 1.
        transmil_landmarks: of TransMIL's attention.
        dtfd_groups: pseudo-bags of DTFD.
        dtfd_distillation: afs or maxmins.
    """

    width: int
    attention_width: int
    heads: int
    classes: int
    lse_sharpness: float
    noisy_and_slope: float
    topk_instances: float
    pooling_heads: int
    pooling_queries: int
    clam_instances: int
    clam_loss_weight: float
    transmil_landmarks: int
    dtfd_groups: int
    dtfd_distillation: str


@runtime_checkable
class Monoid(Protocol):
    """Summaries of instances, one per bag, that merge: associative and commutative.

    A summary is a tuple of tensors whose first axis is the bag.
    """

    def lift(
        self, scores: Float[Tensor, "instance head"], values: Float[Tensor, "instance value"], segments: Segments
    ) -> Summary:
        """Summaries of instances, one per bag."""
        ...

    def merge(self, a: Summary, b: Summary) -> Summary:
        """Summary of two parts of the same bags, bag by bag."""
        ...


@runtime_checkable
class Pooling(Monoid, Protocol):
    """MIL pooling sigma: the contract of the rows of POOLINGS.

    Attributes:
        heads: columns of scores that are attention: 1, or one per class; 0 where none belongs to a class.
    """

    heads: int

    def scorer(self, dtype: torch.dtype) -> Callable[[Float[Tensor, "instance key"]], Float[Tensor, "instance head"]]:
        """Function from embeddings to attention scores.

        Weights are cast now, once for every chunk of a step.
        """
        ...

    def finish(self, summary: Summary) -> Float[Tensor, "bag pooled"]:
        """Pooled value of each bag; heads are concatenated."""
        ...

    def weights(
        self,
        scores: Float[Tensor, "instance head"],
        values: Float[Tensor, "instance value"],
        summary: Summary,
        segments: Segments,
    ) -> Float[Tensor, "instance heads"] | None:
        """Weight of each instance in the pooled value of its bag, summing to 1.

        None where the pooling has no weights.
        """
        ...


@runtime_checkable
class InstancePooling(Pooling, Protocol):
    """Pooling that is defined at instance level."""

    def instance_values(self, logit: Float[Tensor, "instance class"]) -> Float[Tensor, "instance value"]:
        """Values to pool at instance level."""
        ...

    def instance_log_prob(self, pooled: Float[Tensor, "bag pooled"]) -> Float[Tensor, "bag 2 class"]:
        """(log(1 - theta), log theta) of each class, from values pooled at instance level."""
        ...


@runtime_checkable
class FirstPass(Monoid, Protocol):
    """First of two passes over a bag, whose summary the second pass reads."""

    def condition(
        self,
        scores: Float[Tensor, "instance head"],
        values: Float[Tensor, "instance value"],
        summary: Summary,
        segments: Segments,
    ) -> tuple[Tensor, Tensor]:
        """Scores and values that the second pass takes.

        Args:
            scores: as the scorer makes them.
            values: to pool.
            summary: of whole bags, the bags of the segments.
            segments: of these instances.
        """
        ...


@runtime_checkable
class TwoPassPooling(Pooling, Protocol):
    """Pooling that reads a bag twice.

    Its ``lift`` and ``weights`` take what ``first.condition`` makes of the instances.
    """

    first: FirstPass


@runtime_checkable
class TwoStreamPooling(Pooling, Protocol):
    """Pooling with a stream of its own beside the classifier's.

    A bag's logit is the mean of both streams; each has the loss of the target, and their mean is trained.
    """

    def stream_logit(self, summary: Summary) -> Float[Tensor, "bag class"]:
        """Logits of its own stream."""
        ...


@runtime_checkable
class TieredPooling(Pooling, Protocol):
    """Pooling of pseudo-bags, each of which has the loss of the target too.

    The mean of that of the bag and the mean of those of its pseudo-bags is trained. ``lift`` and ``weights`` take
    scores that end in the number of an instance's pseudo-bag.

    Attributes:
        groups: pseudo-bags of a bag.
    """

    groups: int

    def tier_logits(self, summary: Summary) -> tuple[Float[Tensor, "bag group class"], Bool[Tensor, "bag group"]]:
        """Logits of the pseudo-bags, and which have an instance."""
        ...


@runtime_checkable
class WholeBagPooling(Protocol):
    """Pooling of whole bags in the order of places; no monoid.

    Attributes:
        heads: columns of scores; 0.
    """

    heads: int

    def scorer(self, dtype: torch.dtype) -> Scorer:
        """Function from embeddings to no scores."""
        ...

    def pool(self, values: Float[Tensor, "instance key"], slides: Sequence[int]) -> Float[Tensor, " pooled"]:
        """Pooled value of a whole bag.

        Args:
            values: embeddings, slide after slide, each in the order of (y, x).
            slides: instances of each slide.
        """
        ...

    def pool_and_weigh(
        self, values: Float[Tensor, "instance key"], slides: Sequence[int]
    ) -> tuple[Float[Tensor, " pooled"], Float[Tensor, " instance"]]:
        """Pooled value of a whole bag, and weights of instances, summing to 1."""
        ...

    def finish(self, summary: Summary) -> Float[Tensor, "bag pooled"]:
        """Pooled values of bags, from themselves."""
        ...

    def pool_bytes(self, slides: Sequence[int], number_bytes: int, *, with_gradient: bool) -> int:
        """Most memory that the pooling of a bag takes, beside its embeddings.

        Args:
            slides: instances of each slide.
            number_bytes: of a number.
            with_gradient: True in training.
        """
        ...


@runtime_checkable
class AuxiliaryLoss(Monoid, Protocol):
    """Loss of a bag beside that of the target.

    The contract of the rows of AUXILIARY_LOSSES. Its summary is pooled in training only, with that of the pooling and
    from the same scores and values. The loss is a function of the whole bag's summary and label, so that parts of a bag
    need nothing more (docs/pooling.md).

    Attributes:
        weight: w of the loss ``(1 - w) L + w A``, with L that of the target and A this one.
        tensors: of a summary.
    """

    weight: float
    tensors: int

    def losses(self, summary: Summary, labels: Int[Tensor, " bag"]) -> Float[Tensor, " bag"]:
        """Loss of each bag.

        Args:
            summary: of whole bags.
            labels: classes of the bags.
        """
        ...


@runtime_checkable
class Selection(Protocol):
    """Pooling that reads few instances of a bag; only these have a gradient."""

    def winners(self, summary: Summary) -> Int[Tensor, "bag winner"]:
        """Positions in their bags of the instances that count; they may repeat."""
        ...

    def of_winners(self, winners: Summary, whole: Summary) -> Summary:
        """Summary of whole bags from that of their winners.

        Args:
            winners: with the gradient.
            whole: of all instances, without one.
        """
        ...


class ScorelessPooling(nn.Module):
    """Base of poolings without an attention network."""

    heads = 0

    def scorer(self, dtype: torch.dtype) -> Scorer:
        del dtype
        return _no_scores


def _no_scores(keys: Tensor) -> Tensor:
    return keys.new_empty(len(keys), 0)
