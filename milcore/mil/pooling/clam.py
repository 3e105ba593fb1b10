"""CLAM's loss of the most and least attended instances of a bag.

Axes: instance, bag, rank (place in a list), end (most attended, least attended), head, class (two where there are two),
column (heads of both ends, those of the most attended first), key (embedding width).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from milcore.mil.bags.segments import Segments, at_least_fp32
from milcore.mil.pooling.lists import NOWHERE, best_entries, best_of_parts, lists_of, positions_of
from milcore.mil.pooling.protocol import PoolingShape, Summary


class InstanceClusteringLoss(nn.Module):
    """Loss of the most and the least attended instances under classifiers of instances.

    A linear classifier ``v_c`` of instances for each class c, with the smooth top-1 SVM loss ``softplus(1 - v)`` of a
    positive and ``softplus(1 + v)`` of a negative instance. For the label of the bag the k most attended are positives
    and the k least attended negatives, for any other class the k most attended are negatives; the loss is the mean over
    the instances, then over the classes. Of fewer than k instances all count. With a head per class, class c has the
    instances of its head. The summary is (lists of scores, minus them for the least attended; positions; v_c of these
    instances). Their choice has no gradient.

    Source: Lu et al. 2021, arXiv 2004.09666, with the mean over mutually exclusive classes, k = 8 and weight 0.3 of the
    authors' code; Berrada et al. 2018, arXiv 1802.07595, for two outputs, which count by their difference v, alpha = 1
    and tau = 1. The authors' code takes the hinge ``max(0, 1 - v)`` where outputs are log(1000) apart; this does not.
    """

    tensors = 3

    def __init__(self, shape: PoolingShape) -> None:
        super().__init__()
        self.k, self.weight = shape.clam_instances, shape.clam_loss_weight
        self.classifier = nn.Linear(shape.width, max(shape.classes, 2))

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        keys, length = torch.cat([scores, -scores], dim=1).detach(), min(self.k, segments.longest)
        place, rows = best_entries(keys, segments, length)
        return (
            lists_of(keys.gather(0, rows), place, segments.bags, length, -torch.inf),
            positions_of(rows, place, segments, length),
            lists_of(self._logits(values, rows), place, segments.bags, length, 0.0),
        )

    def merge(self, a: Summary, b: Summary) -> Summary:
        best = best_of_parts((a[0], b[0]), (a[1], b[1]))
        key, position, logit = (torch.cat(pair, dim=1) for pair in zip(a, b, strict=True))
        of_classes = best.reshape(*best.shape[:2], 2, -1).expand(-1, -1, -1, logit.shape[3])
        return key.gather(1, best), position.gather(1, best), logit.gather(1, of_classes)

    def losses(self, summary: Summary, labels: Int[Tensor, " bag"]) -> Float[Tensor, " bag"]:
        _, position, logit = summary
        is_filled = position[:, :, 0] != NOWHERE
        most, least = logit.unbind(dim=2)
        of_label = (functional.softplus(1.0 - most) + functional.softplus(1.0 + least)) / 2.0
        is_label = functional.one_hot(labels, logit.shape[3]).bool()[:, None]
        of_entries = torch.where(is_label, of_label, functional.softplus(1.0 + most)).mean(dim=2)
        return (of_entries * is_filled).sum(dim=1) / is_filled.sum(dim=1)

    def _logits(
        self, values: Float[Tensor, "instance key"], rows: Int[Tensor, "entry column"]
    ) -> Float[Tensor, "entry 2 class"]:
        weight, bias = self.classifier.weight, self.classifier.bias
        of_heads = at_least_fp32(values)[rows].reshape(len(rows), 2, -1, values.shape[1])
        return torch.einsum("nehk,hk->neh", of_heads.expand(-1, -1, len(weight), -1), weight) + bias
