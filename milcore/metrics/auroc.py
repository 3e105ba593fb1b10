"""What validation says of a model while it trains, and the area under the ROC curve that it is chosen by.

Apart from ``metrics`` so that a worker that only trains does not wait for what computes intervals and curves.
"""

import math

import numpy as np
from jaxtyping import Float, Int


def auroc(labels: Int[np.ndarray, " slide"], scores: Float[np.ndarray, " slide"]) -> float:
    """``P(score of a positive > score of a negative) + P(equal) / 2``.

    ``(R - p (p + 1) / 2) / (p n)``, R being the sum of the positives' ranks, equal scores sharing the mean of theirs.
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
    """AUROC of class 1 of two; with more, the mean over the classes of one against the rest, absent ones left out."""
    if scores.shape[1] == 2:
        return auroc(labels, scores[:, 1])
    areas = [auroc((labels == c).astype(np.int64), scores[:, c]) for c in range(scores.shape[1]) if np.any(labels == c)]
    return float(np.mean(areas)) if areas else math.nan
