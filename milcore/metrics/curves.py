"""ROC and precision-recall curves of a split, with bootstrap bands.

Curves are scikit-learn's; a split of one class has an empty one. No torch, no I/O.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn import metrics as sk

from milcore.metrics.bootstrap import ScoreGroups
from milcore.metrics.resamples import RESAMPLES, patient_weights, ratio, row_blocks

BAND_POINTS = 101


class RocCurve(NamedTuple):
    """Points of a ROC curve, from (0, 0) to (1, 1).

    Empty for a split of one class. ``threshold`` is the lowest probability predicted positive at each point.
    """

    false_positive_rate: list[float]
    true_positive_rate: list[float]
    threshold: list[float]


def roc_curve(labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"]) -> RocCurve:
    """ROC curve of a split.

    The threshold of (0, 0), infinite by definition, is given as 1.
    """
    if len(np.unique(labels)) < 2:
        return RocCurve([], [], [])
    fpr, tpr, threshold = sk.roc_curve(labels, probability)
    return RocCurve(fpr.tolist(), tpr.tolist(), np.minimum(threshold, 1.0).tolist())


class Band(NamedTuple):
    """2.5th and 97.5th percentile of the resampled curves at each x."""

    x: list[float]
    low: list[float]
    high: list[float]


def curve_bands(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"], patients: list[str], seed: int
) -> tuple[Band, Band]:
    """Pointwise 95 % bands of the ROC and the precision-recall curve.

    From resampled patients; empty for one class.
    """
    if len(np.unique(labels)) < 2:
        return Band([], [], []), Band([], [], [])
    weights, x = patient_weights(patients, RESAMPLES, seed), np.linspace(0.0, 1.0, BAND_POINTS)
    blocks = [_curves_at(x, weights[rows], labels == 1, probability) for rows in row_blocks(weights)]
    roc, recall = (np.concatenate(curves) for curves in zip(*blocks, strict=True))
    return _band(x, roc), _band(x, recall)


def _curves_at(
    x: Float[np.ndarray, " x"],
    weights: Float[np.ndarray, "resample slide"],
    positive: Bool[np.ndarray, " slide"],
    probability: Float[np.ndarray, " slide"],
) -> tuple[Float[np.ndarray, "curve x"], Float[np.ndarray, "curve x"]]:
    """ROC and precision-recall curve of each resample that has both classes."""
    groups = ScoreGroups.of(weights, positive, probability)
    both = (groups.true_positives[:, -1] > 0) & (groups.false_positives[:, -1] > 0)
    tp, fp = groups.true_positives[both], groups.false_positives[both]
    tpr, fpr = tp / tp[:, -1:], fp / fp[:, -1:]
    precision = np.nan_to_num(ratio(tp, tp + fp), nan=1.0)
    roc = [np.interp(x, np.r_[0.0, f], np.r_[0.0, t]) for f, t in zip(fpr, tpr, strict=True)]
    # at a recall between two groups, the precision of the next group
    indices = [np.searchsorted(row, x - 1e-12) for row in tpr]
    recall = [row[np.minimum(index, len(row) - 1)] for row, index in zip(precision, indices, strict=True)]
    shape = (len(tp), len(x))
    return np.reshape(roc, shape), np.reshape(recall, shape)


def _band(x: np.ndarray, curves: Float[np.ndarray, "resample x"]) -> Band:
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    return Band(x.tolist(), low.tolist(), high.tolist())


def precision_recall(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"]
) -> list[tuple[float, float]]:
    """Points (recall, precision) from recall 0 up; empty for one class."""
    if len(np.unique(labels)) < 2:
        return []
    precision, recall, _ = sk.precision_recall_curve(labels, probability)
    return [(float(r), float(p)) for r, p in zip(recall[::-1], precision[::-1], strict=True)]
