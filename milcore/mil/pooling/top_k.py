"""Top-k pooling: the mean probability of the most probable instances.

Axes: instance, bag, rank (place in a list, the best first), class.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from milcore.mil.bags.segments import Segments, at_least_fp32
from milcore.mil.pooling.lists import NOWHERE, best_entries, best_of_parts, lists_of, positions_of
from milcore.mil.pooling.probability import log_of, probabilities
from milcore.mil.pooling.protocol import PoolingShape, ScorelessPooling, Summary

# a share times a count may lie above a whole number by rounding alone
ROUNDING = 1e-6


class TopKPooling(ScorelessPooling):
    """Mean of the k largest probabilities: ``theta = (1/k) sum p_i``.

    At instance level only. All count where there are fewer than k: a count, or a share of the n instances rounded
    up. Each class has its own k instances. Of equal logits the one that stands earlier in the bag counts. The summary
    is (the largest logits, their positions, n), lists as long as the largest bag needs; of two lists the best are kept.
    A weight is 1 / k for the instances that count.

    Source: Campanella et al. 2019, doi 10.1038/s41591-019-0508-1, for k = 1.
    """

    def __init__(self, shape: PoolingShape) -> None:
        super().__init__()
        self.k = shape.topk_instances

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        del scores
        length = int(self._k_of(torch.tensor(segments.longest)))
        place, rows = best_entries(values, segments, length)
        lists = lists_of(at_least_fp32(values).gather(0, rows), place, segments.bags, length, -torch.inf)
        positions = positions_of(rows, place, segments, length)
        return lists, positions, torch.bincount(segments.bag, minlength=segments.bags)[:, None]

    def merge(self, a: Summary, b: Summary) -> Summary:
        best = best_of_parts((a[0], b[0]), (a[1], b[1]))
        logit, position = (torch.cat(pair, dim=1) for pair in zip(a[:2], b[:2], strict=True))
        return logit.gather(1, best), position.gather(1, best), a[2] + b[2]

    def finish(self, summary: Summary) -> Tensor:
        is_counted, k = self._counted(summary)
        p = probabilities(summary[0].masked_fill(~is_counted, 0.0).flatten(0, 1))
        p = p.reshape(*is_counted.shape[:2], -1) * is_counted.repeat(1, 1, 2)
        return p.sum(dim=1) / k

    def winners(self, summary: Summary) -> Int[Tensor, "bag winner"]:
        """Positions in their bags of the instances in the lists."""
        position = summary[1].flatten(1)
        return torch.where(position == NOWHERE, position[:, :1], position)

    def of_winners(self, winners: Summary, whole: Summary) -> Summary:
        """Summary of the winners with the number of all instances."""
        return *winners[:2], whole[2]

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del scores
        is_counted, k = self._counted(summary)
        last = is_counted.sum(dim=1, keepdim=True) - 1
        logit, position = (each.gather(1, last)[:, 0][segments.bag] for each in summary[:2])
        own = at_least_fp32(values)
        is_in = (own > logit) | ((own == logit) & (segments.position[:, None] <= position))
        return is_in / k[segments.bag]

    def instance_values(self, logit: Tensor) -> Tensor:
        return logit

    def instance_log_prob(self, pooled: Tensor) -> Tensor:
        return log_of(pooled)

    def _k_of(self, instances: Int[Tensor, "*bag"]) -> Float[Tensor, "*bag"]:
        """Number of instances that count, of bags of so many."""
        whole = instances.to(torch.float64)
        k = torch.ceil(self.k * whole - ROUNDING) if self.k < 1.0 else torch.full_like(whole, self.k)
        return torch.minimum(k.clamp_min(1.0), whole)

    def _counted(self, summary: Summary) -> tuple[Bool[Tensor, "bag rank class"], Float[Tensor, "bag 1"]]:
        """Entries of the lists that count, and k of each bag."""
        lists, _, count = summary
        k = self._k_of(count)
        rank = torch.arange(lists.shape[1], device=lists.device)
        return (rank < k)[..., None].expand_as(lists), k.to(lists.dtype)
