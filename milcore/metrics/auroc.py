"""Area under the ROC curve, its mean over classes and its standard error.

A module of its own, so that a training worker need not import scikit-learn and scipy for intervals and curves.
"""

import math

import numpy as np
from jaxtyping import Float, Int


def auroc(labels: Int[np.ndarray, " slide"], scores: Float[np.ndarray, " slide"]) -> float:
    """Area under the ROC curve.

    ``P(score of a positive > score of a negative) + P(equal) / 2 = (R - p (p + 1) / 2) / (p n)``, R being the sum of
    the ranks of the p positives, where equal scores share the mean of their ranks, and n the number of negatives.
    NaN where one class is missing, or a score is NaN. Source: Hanley, McNeil 1982, Radiology 143:29-36.
    """
    positives = int(np.count_nonzero(labels == 1))
    negatives = len(labels) - positives
    if not positives or not negatives or np.isnan(scores).any():
        return math.nan
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (count.cumsum() - (count - 1) / 2)[place]
    return float((rank[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def macro_auroc(labels: Int[np.ndarray, " bag"], scores: Float[np.ndarray, "bag class"]) -> float:
    """AUROC of class 1 of two; with more classes, the one-vs-rest mean.

    Classes without a bag are left out of the mean.
    """
    if scores.shape[1] == 2:
        return auroc(labels, scores[:, 1])
    areas = [auroc((labels == c).astype(np.int64), scores[:, c]) for c in range(scores.shape[1]) if np.any(labels == c)]
    return float(np.mean(areas)) if areas else math.nan


def auroc_standard_error(auroc: float, positives: int, negatives: int) -> float:
    """Standard error of an AUROC under exponential scores.

    ``var = (A (1 - A) + (p - 1) (A / (2 - A) - A^2) + (n - 1) (2 A^2 / (1 + A) - A^2)) / (p n)``

    The formula gives 0 at an AUROC of 0 or 1, however few the slides; so there half a pair of a positive and a negative
    counts as ranked the other way.

    Args:
        auroc: A, 0 to 1.
        positives: number p of positives.
        negatives: number n of negatives.

    Source: Hanley, McNeil 1982, Radiology 143:29-36, equation 2.
    """
    half_a_pair = 0.5 / (positives * negatives)
    auroc = min(max(auroc, half_a_pair), 1.0 - half_a_pair)
    ties = (positives - 1) * (auroc / (2 - auroc) - auroc**2) + (negatives - 1) * (
        2 * auroc**2 / (1 + auroc) - auroc**2
    )
    return math.sqrt(max(auroc * (1 - auroc) + ties, 0.0) / (positives * negatives))
