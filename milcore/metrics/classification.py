"""Metrics of bag predictions with patient-level bootstrap intervals. No torch, no I/O.

Two classes are measured on the probability of the positive one. With more, each class is measured against the rest, and
the whole by the means over the classes ("macro").

Point values come from scikit-learn, intervals from the same definitions over resampled patients (``bootstrap``). A
metric that a split cannot define (one class only) is NaN with a reason; it is never 0 or 1 by convention.

Axis words: slide, patient, resample, class.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn import metrics as sk

from milcore.metrics.auroc import auroc, macro_auroc
from milcore.metrics.bootstrap import weighted_auroc, weighted_values
from milcore.metrics.calibration import calibration_error
from milcore.metrics.resamples import RESAMPLES, patient_weights, ratio

ONE_CLASS = "the split holds one class only"
NO_CLASS = "the split holds no slide of this class, or only such"
NO_SLIDE = "the split holds no slide"
PER_CLASS = ("auroc", "auprc", "sensitivity", "specificity", "f1")
MACRO = {"auroc": "auroc", "auprc": "auprc", "balanced_accuracy": "sensitivity", "f1": "f1"}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric and its 95 % interval; value NaN where undefined, with the reason."""

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str | None = None

    def __str__(self) -> str:
        """Value and interval with three decimals, such as ``0.931 (0.882 to 0.970)``."""
        if math.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f}" + ("" if math.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})")

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        """The value in a format of floats; without one, value and interval."""
        return format(self.value, spec) if spec else str(self)

    def __repr__(self) -> str:
        if math.isnan(self.value):
            return f"Estimate(undefined{'' if self.reason is None else f': {self.reason}'})"
        interval = "" if math.isnan(self.low) else f", low={self.low:.3f}, high={self.high:.3f}"
        return f"Estimate({self.value:.3f}{interval})"


@dataclass(frozen=True, slots=True)
class Threshold:
    """Lowest probability of a slide predicted positive, and how it was chosen."""

    value: float
    origin: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the table that compares models on the test split."""

    name: str
    note: str
    auroc: Estimate
    localisation_auroc: Estimate


def choose_threshold(labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"]) -> Threshold:
    """Threshold of largest balanced accuracy on validation; of equals, nearest to 0.5.

    Candidates are 0.5 and the midpoints between neighbouring probabilities, so that a threshold never sits on a slide.
    """
    if len(np.unique(labels)) < 2:
        return Threshold(0.5, "0.5 by default: the validation split holds fewer than two classes")
    scores = np.unique(probability)
    candidates = np.append((scores[1:] + scores[:-1]) / 2, 0.5)
    predicted = probability[None, :] >= candidates[:, None]
    balanced = (predicted[:, labels == 1].mean(axis=1) + (~predicted[:, labels == 0]).mean(axis=1)) / 2
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
    """Slide-level metrics of two classes with 95 % intervals from resampled patients.

    Args:
        labels: 0 or 1.
        probability: of the positive class, 0 to 1.
        patients: the patient of each slide.
        threshold: lowest probability predicted positive; chosen on another split.
        seed: of the resampling.
    """
    predicted = probability >= threshold
    values = point_values(labels, probability, predicted)
    if not len(labels):
        return {name: Estimate(math.nan, reason=NO_SLIDE) for name in values}
    resampled = weighted_values(patient_weights(patients, RESAMPLES, seed), labels, probability, predicted)
    return {name: estimate(values[name], resampled[name]) for name in values}


class ClassEstimates(NamedTuple):
    """Metrics of more than two classes.

    ``of_class`` are those of each class against the rest, ``overall`` their means and the metrics of all classes.
    """

    overall: dict[str, Estimate]
    of_class: tuple[dict[str, Estimate], ...]


def class_estimates(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, "slide class"], patients: list[str], seed: int
) -> ClassEstimates:
    """Slide-level metrics of several classes; the likeliest class is predicted.

    ``auroc``, ``auprc``, ``balanced_accuracy`` (the mean sensitivity) and ``f1`` are means over the classes that the
    split, or the resample, holds. Brier score: ``mean sum_c (p_c - y_c)^2``; ECE: of the predicted class's probability.

    Args:
        labels: class of each slide.
        probability: of every class.
        patients: the patient of each slide.
        seed: of the resampling.
    """
    predicted = probability.argmax(axis=1)
    weights = patient_weights(patients, RESAMPLES, seed) if len(labels) else np.zeros((0, 0))
    one = np.ones((1, len(labels)))
    points, resampled = (
        [
            weighted_values(rows, (labels == c).astype(np.int64), probability[:, c], predicted == c)
            for c in _classes(probability)
        ]
        for rows in (one, weights)
    )
    reason = None if len(labels) else NO_SLIDE
    of_class = tuple(
        {name: estimate(float(point[name][0]), values[name], reason or NO_CLASS) for name in PER_CLASS}
        for point, values in zip(points, resampled, strict=True)
    )
    macro = {
        name: estimate(float(_mean(points, part)[0]), _mean(resampled, part), reason) for name, part in MACRO.items()
    }
    return ClassEstimates(macro | _of_all(labels, probability, weights), of_class)


def _classes(probability: Float[np.ndarray, "slide class"]) -> range:
    return range(probability.shape[1])


def _mean(of_class: list[dict[str, np.ndarray]], name: str) -> Float[np.ndarray, " resample"]:
    """Mean of a metric over the classes where it is defined; else NaN."""
    values = np.stack([metrics[name] for metrics in of_class])
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))


def _of_all(
    labels: Int[np.ndarray, " slide"],
    probability: Float[np.ndarray, "slide class"],
    weights: Float[np.ndarray, "resample slide"],
) -> dict[str, Estimate]:
    """Accuracy, Brier score and ECE of all classes together."""
    if not len(labels):
        return {name: Estimate(math.nan, reason=NO_SLIDE) for name in ("accuracy", "brier", "ece")}
    right = (probability.argmax(axis=1) == labels).astype(np.int64)
    square = ((probability - np.eye(probability.shape[1])[labels]) ** 2).sum(axis=1)
    top = probability.max(axis=1)
    one, total = np.ones((1, len(labels))), weights.sum(axis=1)
    return {
        "accuracy": estimate(float(right.mean()), ratio(weights @ right, total)),
        "brier": estimate(float(square.mean()), ratio(weights @ square, total)),
        "ece": estimate(float(calibration_error(one, right, top)[0]), calibration_error(weights, right, top)),
    }


def estimate(value: float, resampled: Float[np.ndarray, " resample"], reason: str | None = None) -> Estimate:
    """A metric with the 2.5th and 97.5th percentile of its resamples.

    Resamples where it is undefined are left out.

    Args:
        value: NaN where undefined.
        resampled: the metric in every resample.
        reason: of an undefined value; None stands for ``ONE_CLASS``.
    """
    defined = resampled[~np.isnan(resampled)]
    if math.isnan(value) or not len(defined):
        return Estimate(value, reason=(reason or ONE_CLASS) if math.isnan(value) else None)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def mean_estimate(values: Float[np.ndarray, " slide"], patients: list[str], seed: int) -> Estimate:
    """The mean over slides with its 95 % interval from resampled patients."""
    weights = patient_weights(patients, RESAMPLES, seed)
    return estimate(float(values.mean()), ratio(weights @ values, weights.sum(axis=1)))


def auroc_estimate(
    labels: Int[np.ndarray, " slide"], scores: Float[np.ndarray, "slide class"], patients: list[str], seed: int
) -> Estimate:
    """``macro_auroc`` with its 95 % interval from resampled patients, for scores on any scale."""
    weights = patient_weights(patients, RESAMPLES, seed)
    columns = [1] if scores.shape[1] == 2 else list(_classes(scores))
    areas = [{"auroc": weighted_auroc(weights, (labels == c).astype(np.int64), scores[:, c])} for c in columns]
    return estimate(macro_auroc(labels, scores), _mean(areas, "auroc"))


def point_values(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"], predicted: Bool[np.ndarray, " slide"]
) -> dict[str, float]:
    """Metrics of a split by scikit-learn.

    Where a class is missing, all but accuracy, Brier score and ECE are NaN.
    """
    both = len(np.unique(labels)) == 2
    return {
        "auroc": auroc(labels, probability),
        "auprc": float(sk.average_precision_score(labels, probability)) if both else math.nan,
        "accuracy": float(sk.accuracy_score(labels, predicted)) if len(labels) else math.nan,
        "balanced_accuracy": float(sk.balanced_accuracy_score(labels, predicted)) if both else math.nan,
        "f1": float(sk.f1_score(labels, predicted, zero_division=0.0)) if both else math.nan,
        "sensitivity": float(sk.recall_score(labels, predicted)) if both else math.nan,
        "specificity": float(sk.recall_score(labels, predicted, pos_label=0)) if both else math.nan,
        "brier": float(sk.brier_score_loss(labels, probability, pos_label=1)) if len(labels) else math.nan,
        "ece": float(calibration_error(np.ones((1, len(labels))), labels, probability)[0]),
    }


def confusion(labels: Int[np.ndarray, " slide"], predicted: Int[np.ndarray, " slide"], classes: int) -> list[list[int]]:
    """Confusion matrix of slide counts: row = true class, column = predicted class."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return [[int(n) for n in row] for row in counts]
