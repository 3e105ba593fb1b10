"""Table of the auxiliary losses of a bag, and their product with a pooling."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from milcore.config import PoolingName
from milcore.mil.bags.segments import Segments
from milcore.mil.pooling.clam import InstanceClusteringLoss
from milcore.mil.pooling.protocol import AuxiliaryLoss, Monoid, PoolingShape, Summary


class ProductMonoid(NamedTuple):
    """Summaries of a pooling, each followed by that of an auxiliary loss."""

    pooling: Monoid
    auxiliary: AuxiliaryLoss

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        return self.pooling.lift(scores, values, segments) + self.auxiliary.lift(scores, values, segments)

    def merge(self, a: Summary, b: Summary) -> Summary:
        (a_pooling, a_auxiliary), (b_pooling, b_auxiliary) = self.factors(a), self.factors(b)
        return self.pooling.merge(a_pooling, b_pooling) + self.auxiliary.merge(a_auxiliary, b_auxiliary)

    def factors(self, summary: Summary) -> tuple[Summary, Summary]:
        """Summary of the pooling, and that of the auxiliary loss."""
        return summary[: -self.auxiliary.tensors], summary[-self.auxiliary.tensors :]


AUXILIARY_LOSSES: dict[PoolingName, Callable[[PoolingShape], AuxiliaryLoss]] = {
    "clam_sb": InstanceClusteringLoss,
    "clam_mb": InstanceClusteringLoss,
}
