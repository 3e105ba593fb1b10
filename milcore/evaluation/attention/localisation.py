"""Localisation: attention weights against annotated instances."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import average_precision_score

from milcore.metrics.auroc import auroc


@dataclass(frozen=True, slots=True)
class Localisation:
    """Agreement of attention with annotated patches.

    Args:
        auroc: mean of the within-bag AUROCs.
        bags: AUROC of each bag.
        precision: average precision of each bag.
        left_out: reason of each bag that has neither.
    """

    auroc: float
    bags: dict[str, float]
    precision: dict[str, float]
    left_out: dict[str, str]


def localise(
    bags: dict[str, tuple[Float[np.ndarray, " instance"], Int[np.ndarray, " instance"] | None]],
) -> Localisation:
    """Compare attention with instance labels inside each bag.

    ``mean over bags of AUROC(weight against instance label)``; NaN where no bag can be used.

    Args:
        bags: for every positive test bag, its attention weights and instance labels (1, 0, -1 left out; None if the bag
            has no annotation). A bag without both classes is left out and named.
    """
    scores: dict[str, float] = {}
    precision: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for slide_id, (weight, labels) in bags.items():
        if labels is None:
            left_out[slide_id] = "no annotation"
        elif len(np.unique(labels[labels >= 0])) < 2:
            left_out[slide_id] = "annotation leaves one class of patches only"
        else:
            scores[slide_id] = auroc(labels[labels >= 0], weight[labels >= 0])
            precision[slide_id] = float(average_precision_score(labels[labels >= 0], weight[labels >= 0]))
    mean = float(np.mean(list(scores.values()))) if scores else math.nan
    return Localisation(mean, scores, precision, left_out)
