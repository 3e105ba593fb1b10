"""Metrics of bag predictions with patient-level bootstrap intervals. No torch, no I/O.

Point values come from scikit-learn. Intervals come from the same definitions written for a matrix of slide weights, so
that all resamples are one array expression. The unit that is drawn is the patient: two slides of one patient are not
independent. A metric that a split cannot define (one class only) is NaN and says why; it is never 0 or 1 by convention.

Axis words: slide, patient, resample, bin.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn import metrics as sk

RESAMPLES = 2000
ONE_CLASS = "the split holds one class only"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric and its 95 % interval; value NaN where undefined, with the reason."""

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """The probability from which a slide is called positive, and how it was chosen."""

    value: float
    origin: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the comparison table: what was fitted, and how it does on the test split."""

    name: str
    note: str
    auroc: Estimate
    localisation_auroc: Estimate


def choose_threshold(labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"]) -> Threshold:
    """The threshold of largest balanced accuracy on validation; among equals the one nearest to 0.5.

    Candidates are 0.5 and the midpoints between neighbouring probabilities, so that a threshold never sits on a slide.
    """
    if len(np.unique(labels)) < 2:
        return Threshold(0.5, "0.5 by default: the validation split holds fewer than two classes")
    scores = np.unique(probability)
    candidates = np.append((scores[1:] + scores[:-1]) / 2, 0.5)
    called = probability[None, :] >= candidates[:, None]
    balanced = (called[:, labels == 1].mean(axis=1) + (~called[:, labels == 0]).mean(axis=1)) / 2
    best = candidates[np.isclose(balanced, balanced.max())]
    value = float(best[np.argmin(np.abs(best - 0.5))])
    return Threshold(value, "largest balanced accuracy on the validation split")


def estimates(
    labels: Int[np.ndarray, " slide"],
    probability: Float[np.ndarray, " slide"],
    patients: list[str],
    threshold: float,
    seed: int,
) -> dict[str, Estimate]:
    """Every slide-level metric of a split with its 95 % interval from resampled patients.

    Args:
        labels: 0 or 1.
        probability: of the positive class, 0 to 1.
        patients: the patient of each slide.
        threshold: a slide is called positive from here on; chosen on another split.
        seed: of the resampling.
    """
    values = point_values(labels, probability, threshold)
    if not len(labels):
        return {name: Estimate(math.nan, reason="the split holds no slide") for name in values}
    weights = patient_weights(patients, RESAMPLES, seed)
    spread = weighted_values(weights, labels, probability, threshold)
    return {name: estimate(values[name], spread[name]) for name in values}


def estimate(value: float, resampled: Float[np.ndarray, " resample"]) -> Estimate:
    """The value with the 2.5th and 97.5th percentile of its resamples; resamples where it is undefined are left out."""
    defined = resampled[~np.isnan(resampled)]
    if math.isnan(value) or not len(defined):
        return Estimate(value, reason=ONE_CLASS if math.isnan(value) else None)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def mean_estimate(values: Float[np.ndarray, " slide"], patients: list[str], seed: int) -> Estimate:
    """The mean over slides with its 95 % interval from resampled patients."""
    weights = patient_weights(patients, RESAMPLES, seed)
    return estimate(float(values.mean()), _ratio(weights @ values, weights.sum(axis=1)))


def auroc_estimate(
    labels: Int[np.ndarray, " slide"], scores: Float[np.ndarray, " slide"], patients: list[str], seed: int
) -> Estimate:
    """AUROC with its 95 % interval from resampled patients, for scores on any scale."""
    weights = patient_weights(patients, RESAMPLES, seed)
    return estimate(auroc(labels, scores), weighted_auroc(weights, labels, scores))


def point_values(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"], threshold: float
) -> dict[str, float]:
    """The metrics of a split by scikit-learn; NaN where one class is missing, save accuracy and Brier score."""
    called = (probability >= threshold).astype(np.int64)
    both = len(np.unique(labels)) == 2
    return {
        "auroc": auroc(labels, probability),
        "auprc": float(sk.average_precision_score(labels, probability)) if both else math.nan,
        "accuracy": float(sk.accuracy_score(labels, called)) if len(labels) else math.nan,
        "balanced_accuracy": float(sk.balanced_accuracy_score(labels, called)) if both else math.nan,
        "f1": float(sk.f1_score(labels, called, zero_division=0.0)) if both else math.nan,
        "sensitivity": float(sk.recall_score(labels, called)) if both else math.nan,
        "specificity": float(sk.recall_score(labels, called, pos_label=0)) if both else math.nan,
        "brier": float(np.mean((probability - labels) ** 2)) if len(labels) else math.nan,
    }


def macro_auroc(labels: Int[np.ndarray, " bag"], scores: Float[np.ndarray, "bag class"]) -> float:
    """AUROC of class 1 of two; with more, the mean over the classes of one against the rest, absent ones left out."""
    if scores.shape[1] == 2:
        return auroc(labels, scores[:, 1])
    areas = [auroc((labels == c).astype(np.int64), scores[:, c]) for c in range(scores.shape[1]) if np.any(labels == c)]
    return float(np.mean(areas)) if areas else math.nan


def auroc(labels: Int[np.ndarray, " slide"], scores: Float[np.ndarray, " slide"]) -> float:
    """``P(score of a positive > score of a negative) + P(equal) / 2``; NaN where one class is missing."""
    return float(sk.roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else math.nan


def patient_weights(patients: list[str], resamples: int, seed: int) -> Float[np.ndarray, "resample slide"]:
    """How often each slide occurs when n of n patients are drawn with replacement, each with all its slides."""
    names, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return np.asarray(draws[:, patient], dtype=np.float64)


def weighted_values(
    weights: Float[np.ndarray, "resample slide"],
    labels: Int[np.ndarray, " slide"],
    probability: Float[np.ndarray, " slide"],
    threshold: float,
) -> dict[str, Float[np.ndarray, " resample"]]:
    """The metrics of ``point_values`` for every row of slide weights at once; NaN in rows that lack a class."""
    positive, called = labels == 1, probability >= threshold
    hit, miss = weights @ (positive & called), weights @ (positive & ~called)
    alarm, reject = weights @ (~positive & called), weights @ (~positive & ~called)
    total = weights.sum(axis=1)
    sensitivity, specificity = _ratio(hit, hit + miss), _ratio(reject, alarm + reject)
    area, precision = _ranking_values(weights, positive, probability)
    return {
        "auroc": area,
        "auprc": precision,
        "accuracy": _ratio(hit + reject, total),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": np.where(np.isnan(area), math.nan, _ratio(2 * hit, 2 * hit + alarm + miss)),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "brier": _ratio(weights @ (probability - labels) ** 2, total),
    }


def weighted_auroc(
    weights: Float[np.ndarray, "resample slide"],
    labels: Int[np.ndarray, " slide"],
    scores: Float[np.ndarray, " slide"],
) -> Float[np.ndarray, " resample"]:
    """AUROC for every row of slide weights; NaN in rows that lack a class."""
    return _ranking_values(weights, labels == 1, scores)[0]


def _ranking_values(
    weights: Float[np.ndarray, "resample slide"],
    positive: Bool[np.ndarray, " slide"],
    scores: Float[np.ndarray, " slide"],
) -> tuple[Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]]:
    """AUROC and average precision per row: one sort, then sums over groups of equal score from the highest down."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    ranked = weights[:, order]
    hits = np.add.reduceat(ranked * positive[order], starts, axis=1)
    alarms = np.add.reduceat(ranked * ~positive[order], starts, axis=1)
    hits_above, alarms_above = hits.cumsum(axis=1), alarms.cumsum(axis=1)
    all_hits, all_alarms = hits_above[:, -1], alarms_above[:, -1]
    area = _ratio((alarms * (hits_above - hits / 2)).sum(axis=1), all_hits * all_alarms)
    at_group = np.nan_to_num(_ratio(hits_above, hits_above + alarms_above))
    precision = _ratio((hits * at_group).sum(axis=1), all_hits)
    return area, np.where(all_alarms > 0, precision, math.nan)


def confusion(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"], threshold: float
) -> list[list[int]]:
    """Slide counts, row = true class, column = called class."""
    if not len(labels):
        return [[0, 0], [0, 0]]
    called = (probability >= threshold).astype(np.int64)
    return [[int(n) for n in row] for row in sk.confusion_matrix(labels, called, labels=[0, 1])]


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


def reliability(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"], bins: int
) -> list[tuple[float, float, int]]:
    """(mean probability, share of positives, slides) of each filled bin of equal width."""
    index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    filled = [index == k for k in range(bins) if np.any(index == k)]
    return [(float(probability[k].mean()), float(labels[k].mean()), int(k.sum())) for k in filled]


def _ratio(top: Float[np.ndarray, "..."], bottom: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """``top / bottom``, NaN where bottom is 0."""
    quotient: np.ndarray = np.divide(top, bottom, out=np.full(np.shape(top), math.nan), where=bottom != 0)
    return quotient
