"""Model selection on validation."""

import math
from typing import NamedTuple


class Validation(NamedTuple):
    """What the validation split says of a model: mean ``-log P(label)`` and AUROC, NaN where undefined."""

    loss: float
    auroc: float

    @property
    def rank(self) -> tuple[float, float]:
        """By this epochs and trials are chosen; the smaller is the better.

        AUROC first: among few slides one confident mistake rules the loss, and models grow confident long before they
        stop ordering slides better. Then loss, which alone decides where the split defines no AUROC.
        """
        return (0.0 if math.isnan(self.auroc) else -self.auroc, self.loss)


NO_VALIDATION = Validation(math.inf, math.nan)
