"""Model selection on the validation split."""

import math
from typing import NamedTuple

from milcore.config import Target


class RankMetric(NamedTuple):
    """Metric by which epochs and trials rank.

    Args:
        name: as in ``val_<name>``.
        title: for a person.
        bags: of which it is measured, for a person.
    """

    name: str
    title: str
    bags: str


HARRELL_C = RankMetric("harrell_c", "Harrell's C", "patients")
R2 = RankMetric("r2", "R2", "bags")
RANK_METRICS: dict[Target, RankMetric] = {
    "classification": RankMetric("auroc", "AUROC", "slides"),
    "survival_cox": HARRELL_C,
    "survival_hazard": HARRELL_C,
    "regression": R2,
}


def metric_name(target: Target) -> str:
    """Name of the metric by which epochs and trials rank: ``val_auroc`` of classes."""
    return f"val_{RANK_METRICS[target].name}"


class Validation(NamedTuple):
    """Validation of a model: mean loss, and the metric of its target.

    The metric is the larger the better: AUROC of classes, Harrell's C of survival, R2 of regression. Both
    are NaN where undefined; such a metric ranks last, behind an R2 below 0 too.
    """

    loss: float
    metric: float

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key of epochs and trials; the smallest is the best.

        The metric first: among few slides one confident error dominates the loss, and models grow overconfident while
        their ranking of slides still improves. Then loss, which alone decides where the metric is undefined.
        """
        return (math.inf if math.isnan(self.metric) else -self.metric, self.loss)


NO_VALIDATION = Validation(math.inf, math.nan)
