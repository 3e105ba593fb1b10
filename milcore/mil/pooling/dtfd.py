"""DTFD: pseudo-bags of a bag, and a second tier over their distilled features.

Axes: instance, bag, group (pseudo-bag), class (logits: one where there are two classes), key (embedding width), column
(score, logits of classes, number of the pseudo-bag), extreme (largest and smallest of every group and class), feature
(distilled of a bag).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from milcore.mil.bags.segments import Segments, at_least_fp32
from milcore.mil.dropout import uniform
from milcore.mil.pooling.attention import AttentionScore
from milcore.mil.pooling.maxima import is_first_winner, winner_rows
from milcore.mil.pooling.protocol import PoolingShape, Scorer, Summary
from milcore.mil.pooling.softmax import lift_softmax, merge_softmax, softmax_weights

# score of an instance in other groups than its own, below any; exponentials relative to a real score are 0
ELSEWHERE = -1e30


def pseudo_bags(keys: Int[Tensor, " instance"], groups: int) -> Int[Tensor, " instance"]:
    """Number of the pseudo-bag of each instance, all equally likely.

    Args:
        keys: 64-bit, of the instances.
        groups: pseudo-bags.
    """
    return (uniform(keys, 1)[:, 0] * groups).long().clamp_max(groups - 1)


class PseudoBagPooling(nn.Module):
    """Gated attention to features distilled of M pseudo-bags.

    At embedding level only. First tier: each pseudo-bag is pooled by gated attention, ``z_m = sum_i a_i h_i``, and
    classified with the label of the bag, ``v_m = w^T z_m + b``. Second tier: gated attention to the distilled features,
    of which the classifier of the model reads the weighted sum. Distilled are the z_m (afs), or the instances of each
    pseudo-bag with the largest and the smallest class activation ``a_i w^T h_i`` (maxmins), of each class where there
    are more than two. Both tiers are trained: the loss is the mean of that of the bag and the mean of those of its
    pseudo-bags. The choice of instances has no gradient. Pseudo-bags without an instance are left out.

    The scores end in the number of an instance's pseudo-bag, which is drawn by its number in the bag. The summary is
    that of attention pooling with a head for each pseudo-bag; with maxmins the extremes too, with their positions.

    Source: Zhang et al. 2022, arXiv 2203.12081. There pseudo-bags are equal in size; drawn apart for every instance
    they are so on average. Activations are ordered by ``exp(s_i) w^T h_i``, the same order within a pseudo-bag.
    """

    heads = 0

    def __init__(self, shape: PoolingShape) -> None:
        super().__init__()
        self.groups, self.has_extremes = shape.dtfd_groups, shape.dtfd_distillation == "maxmins"
        self.attention = AttentionScore(shape.width, shape.attention_width, 1, gated=True)
        self.group_classifier = nn.Linear(shape.width, shape.classes)
        self.second_attention = AttentionScore(shape.width, shape.attention_width, 1, gated=True)

    def scorer(self, dtype: torch.dtype) -> Scorer:
        score, weight = self.attention.scorer(dtype), self.group_classifier.weight.detach().to(dtype)
        if not self.has_extremes:
            return score

        def columns(keys: Tensor) -> Tensor:
            return torch.cat([score(keys), at_least_fp32(functional.linear(keys.detach(), weight))], dim=1)

        return columns

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        softmax = lift_softmax(self._of_groups(scores), values, segments)
        if not self.has_extremes:
            return softmax
        keys = self._extreme_keys(scores)
        rows = winner_rows(keys, segments)
        return *softmax, keys.gather(0, rows), segments.position[rows], at_least_fp32(values)[rows]

    def merge(self, a: Summary, b: Summary) -> Summary:
        softmax = merge_softmax(a[:3], b[:3])
        if not self.has_extremes:
            return softmax
        take_a = is_first_winner(a[3:], b[3:])
        key, position = (torch.where(take_a, *pair) for pair in zip(a[3:5], b[3:5], strict=True))
        return *softmax, key, position, torch.where(take_a[..., None], a[5], b[5])

    def finish(self, summary: Summary) -> Tensor:
        features, _ = self._distilled(summary)
        return (self._feature_weights(summary)[..., None] * features).sum(dim=1)

    def tier_logits(self, summary: Summary) -> tuple[Float[Tensor, "bag group class"], Bool[Tensor, "bag group"]]:
        """Logits of the pseudo-bags, and which have an instance."""
        logits: Tensor = self.group_classifier(_means(summary))
        return logits, _is_filled(summary)

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del values
        of_features = self._feature_weights(summary)[segments.bag]
        if self.has_extremes:
            is_extreme = segments.position[:, None] == summary[4][segments.bag]
            is_own = self._extreme_keys(scores) > -torch.inf
            return (of_features * (is_extreme & is_own)).sum(dim=1, keepdim=True)
        return (of_features * softmax_weights(self._of_groups(scores), summary, segments)).sum(dim=1, keepdim=True)

    def _is_own(self, scores: Float[Tensor, "instance column"]) -> Bool[Tensor, "instance group"]:
        return scores[:, -1:] == torch.arange(self.groups, device=scores.device)

    def _of_groups(self, scores: Float[Tensor, "instance column"]) -> Float[Tensor, "instance group"]:
        """Scores as those of a head for each pseudo-bag."""
        return torch.where(self._is_own(scores), scores[:, :1], ELSEWHERE)

    @torch.no_grad()
    def _extreme_keys(self, scores: Float[Tensor, "instance column"]) -> Float[Tensor, "instance extreme"]:
        """Keys that are largest at the extremes; minus infinity in other pseudo-bags.

        In fp64, in which no exponential of an attention score overflows.
        """
        activation = scores[:, :1].double().exp() * scores[:, 1:-1].double()
        both = torch.cat([activation, -activation], dim=1)[:, None]
        return torch.where(self._is_own(scores)[..., None], both, -torch.inf).flatten(1)

    def _distilled(self, summary: Summary) -> tuple[Float[Tensor, "bag feature key"], Bool[Tensor, "bag feature"]]:
        """Distilled features, and which there are."""
        if self.has_extremes:
            return summary[5], summary[3] > -torch.inf
        return _means(summary), _is_filled(summary)

    def _feature_weights(self, summary: Summary) -> Float[Tensor, "bag feature"]:
        features, exists = self._distilled(summary)
        score = self.second_attention.scorer(features.dtype)(features.flatten(0, 1)).reshape(features.shape[:2])
        return torch.softmax(score.masked_fill(~exists, -torch.inf), dim=1)


def _means(summary: Summary) -> Float[Tensor, "bag group key"]:
    return summary[2] / summary[1][..., None]


def _is_filled(summary: Summary) -> Bool[Tensor, "bag group"]:
    return summary[0] > ELSEWHERE / 2
