"""Model selection on the validation split."""

import math
from typing import NamedTuple


class Validation(NamedTuple):
    """Validation metrics of a model: mean ``-log P(label)`` and AUROC, NaN where undefined."""

    loss: float
    auroc: float

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key of epochs and trials; the smallest is the best.

        AUROC first: among few slides one confident error dominates the loss, and models grow overconfident while their
        ranking of slides still improves. Then loss, which alone decides where AUROC is undefined.
        """
        return (0.0 if math.isnan(self.auroc) else -self.auroc, self.loss)


NO_VALIDATION = Validation(math.inf, math.nan)
