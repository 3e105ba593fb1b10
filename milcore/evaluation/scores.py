"""The test split in numbers, by rules that were chosen on validation.

A bag's own figures are "slide level" (patient level where the run's bags are patients). Where patients have several
test slides of two classes, figures of patients stand beside them: a patient's probability and label are the highest of
their slides, as a bag's are of its instances.
"""

import math
from typing import NamedTuple

import numpy as np

from milcore.evaluation.decision import DecisionRule
from milcore.evaluation.run_predictions import SplitPredictions
from milcore.metrics.calibration import calibrate
from milcore.metrics.classification import (
    Estimate,
    Threshold,
    class_estimates,
    estimates,
)
from milcore.metrics.curves import RocCurve, roc_curve
from milcore.metrics.delong import delong


class SplitMetrics(NamedTuple):
    """Figures of the test split: of bags, of single classes (more than two), of patients, and with temperature."""

    overall: dict[str, Estimate]
    of_class: tuple[dict[str, Estimate], ...]
    of_patients: dict[str, Estimate]
    calibrated: dict[str, Estimate]
    auroc_delong: Estimate


def measure(test: SplitPredictions, rule: DecisionRule, seed: int) -> SplitMetrics:
    """Every figure of the test split.

    Args:
        test: read here, and nothing of it goes into the rule.
        rule: of the validation split.
        seed: of the resampling.
    """
    warm = calibrate(test.probability, rule.temperature.value)
    if rule.threshold is None:
        found = class_estimates(test.labels, test.probability, test.patients, seed)
        after = class_estimates(test.labels, warm, test.patients, seed).overall
        unknown = Estimate(math.nan, reason="defined for two classes")
        return SplitMetrics(found.overall, found.of_class, {}, _calibration(after), unknown)
    positive = test.probability[:, 1]
    overall = estimates(test.labels, positive, test.patients, rule.threshold.value, seed)
    after = estimates(test.labels, warm[:, 1], test.patients, 0.5, seed)
    analytic = delong(test.labels, positive, test.patients)
    return SplitMetrics(overall, (), _of_patients(test, rule.threshold, seed), _calibration(after), analytic)


def _calibration(found: dict[str, Estimate]) -> dict[str, Estimate]:
    return {name: found[name] for name in ("brier", "ece")}


def _of_patients(test: SplitPredictions, threshold: Threshold, seed: int) -> dict[str, Estimate]:
    """Empty where every patient has one bag."""
    patients = sorted(set(test.patients))
    if len(patients) == len(test.entries):
        return {}
    place = np.searchsorted(patients, test.patients)
    labels, probability = np.zeros(len(patients), np.int64), np.zeros(len(patients))
    np.maximum.at(labels, place, test.labels)
    np.maximum.at(probability, place, test.probability[:, 1])
    return estimates(labels, probability, patients, threshold.value, seed)


def roc_of(part: SplitPredictions) -> RocCurve:
    """Of the positive class of two; with more, of all one-against-rest decisions together (micro-average)."""
    classes = part.probability.shape[1]
    if classes == 2:
        return roc_curve(part.labels, part.probability[:, 1])
    return roc_curve(np.eye(classes, dtype=np.int64)[part.labels].ravel(), part.probability.ravel())
