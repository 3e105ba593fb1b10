"""ROC and precision-recall curves of a split, with the bands of their resamples. No torch, no I/O.

A curve is that of scikit-learn; a split of one class has none, and its curve is empty.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn import metrics as sk

from milcore.metrics.bootstrap import RESAMPLES, ScoreGroups, patient_weights, ratio

BAND_POINTS = 101


class RocCurve(NamedTuple):
    """Points from (0, 0) to (1, 1), and the lowest probability called positive at each; empty for one class."""

    false_positive_rate: list[float]
    true_positive_rate: list[float]
    threshold: list[float]


def roc_curve(labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"]) -> RocCurve:
    """The ROC curve of a split; the threshold of (0, 0), infinite by definition, is given as 1."""
    if len(np.unique(labels)) < 2:
        return RocCurve([], [], [])
    alarm, hit, threshold = sk.roc_curve(labels, probability)
    return RocCurve(alarm.tolist(), hit.tolist(), np.minimum(threshold, 1.0).tolist())


class Band(NamedTuple):
    """Where 95 % of the resampled curves run at each x."""

    x: list[float]
    low: list[float]
    high: list[float]


def curve_bands(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"], patients: list[str], seed: int
) -> tuple[Band, Band]:
    """The pointwise bands of the ROC and of the precision-recall curve from resampled patients; empty for one class."""
    if len(np.unique(labels)) < 2:
        return Band([], [], []), Band([], [], [])
    ranked = ScoreGroups.of(patient_weights(patients, RESAMPLES, seed), labels == 1, probability)
    both = (ranked.hits_above[:, -1] > 0) & (ranked.alarms_above[:, -1] > 0)
    hits, alarms = ranked.hits_above[both], ranked.alarms_above[both]
    recall, alarm_rate = hits / hits[:, -1:], alarms / alarms[:, -1:]
    precision = np.nan_to_num(ratio(hits, hits + alarms), nan=1.0)
    x = np.linspace(0.0, 1.0, BAND_POINTS)
    roc = np.stack([np.interp(x, np.r_[0.0, a], np.r_[0.0, r]) for a, r in zip(alarm_rate, recall, strict=True)])
    # at a recall that no group ends on, the precision of the next group reached
    at = [np.searchsorted(row, x - 1e-12) for row in recall]
    pr = np.stack([row[np.minimum(places, len(row) - 1)] for row, places in zip(precision, at, strict=True)])
    return _band(x, roc), _band(x, pr)


def _band(x: np.ndarray, curves: Float[np.ndarray, "resample x"]) -> Band:
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    return Band(x.tolist(), low.tolist(), high.tolist())


def precision_recall(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"]
) -> list[tuple[float, float]]:
    """(recall, precision) from recall 0 up; empty for one class."""
    if len(np.unique(labels)) < 2:
        return []
    precision, recall, _ = sk.precision_recall_curve(labels, probability)
    return [(float(r), float(p)) for r, p in zip(recall[::-1], precision[::-1], strict=True)]
