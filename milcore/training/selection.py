"""Model selection on the validation split."""

import math
from typing import NamedTuple


class Validation(NamedTuple):
    """Validation of a model: mean loss, and the metric of its target.

    The metric is the larger the better: AUROC of classes. Both are NaN where undefined.
    """

    loss: float
    metric: float

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key of epochs and trials; the smallest is the best.

        The metric first: among few slides one confident error dominates the loss, and models grow overconfident while
        their ranking of slides still improves. Then loss, which alone decides where the metric is undefined.
        """
        return (0.0 if math.isnan(self.metric) else -self.metric, self.loss)


NO_VALIDATION = Validation(math.inf, math.nan)
