"""Metrics of the test split, by a decision rule chosen on validation.

Metrics of bags are "slide level" (patient level where the run's bags are patients). Where patients have several
test slides of two classes, metrics of patients stand beside them: a patient's probability and label are the highest of
their slides, as a bag's are of its instances.
"""

import math
from typing import NamedTuple

import numpy as np

from milcore.evaluation.decision import DecisionRule
from milcore.evaluation.run_predictions import SplitPredictions
from milcore.metrics.calibration import calibrate
from milcore.metrics.classification import Estimate, Threshold, class_estimates, estimates
from milcore.metrics.curves import RocCurve, roc_curve
from milcore.metrics.delong import delong
from milcore.metrics.newcombe import auroc_to_show


class SplitMetrics(NamedTuple):
    """Metrics of the test split.

    Args:
        overall: of bags.
        of_class: of each class of more than two, empty for two.
        of_patients: empty where every patient has one bag.
        calibrated: Brier score and ECE after temperature scaling.
        auroc: with the interval that the report shows: Newcombe's for two classes.
        auroc_delong: AUROC with DeLong's interval, undefined for more than two classes.
    """

    overall: dict[str, Estimate]
    of_class: tuple[dict[str, Estimate], ...]
    of_patients: dict[str, Estimate]
    calibrated: dict[str, Estimate]
    auroc: Estimate
    auroc_delong: Estimate


def measure(test: SplitPredictions, rule: DecisionRule, seed: int) -> SplitMetrics:
    """Compute all metrics of the test split.

    Args:
        test: used here only; the rule does not depend on it.
        rule: of the validation split.
        seed: of the resampling.
    """
    calibrated = calibrate(test.probability, rule.temperature.value)
    auroc = auroc_to_show(test.labels, test.probability, test.patients, seed)
    if rule.threshold is None:
        metrics = class_estimates(test.labels, test.probability, test.patients, seed)
        after = class_estimates(test.labels, calibrated, test.patients, seed).overall
        undefined = Estimate(math.nan, reason="defined for two classes")
        return SplitMetrics(metrics.overall, metrics.of_class, {}, _calibration_errors(after), auroc, undefined)
    positive = test.probability[:, 1]
    overall = estimates(test.labels, positive, test.patients, rule.threshold.value, seed)
    after = estimates(test.labels, calibrated[:, 1], test.patients, 0.5, seed)
    return SplitMetrics(
        overall=overall,
        of_class=(),
        of_patients=_of_patients(test, rule.threshold, seed),
        calibrated=_calibration_errors(after),
        auroc=auroc,
        auroc_delong=delong(test.labels, positive, test.patients),
    )


def _calibration_errors(metrics: dict[str, Estimate]) -> dict[str, Estimate]:
    return {name: metrics[name] for name in ("brier", "ece")}


def _of_patients(test: SplitPredictions, threshold: Threshold, seed: int) -> dict[str, Estimate]:
    """Metrics of patients; empty where every patient has one bag."""
    patients = sorted(set(test.patients))
    if len(patients) == len(test.entries):
        return {}
    patient = np.searchsorted(patients, test.patients)
    labels, probability = np.zeros(len(patients), np.int64), np.zeros(len(patients))
    np.maximum.at(labels, patient, test.labels)
    np.maximum.at(probability, patient, test.probability[:, 1])
    return estimates(labels, probability, patients, threshold.value, seed)


def roc_of(split: SplitPredictions) -> RocCurve:
    """ROC curve of the positive class of two, or the micro-average of more.

    The micro-average takes all one-against-rest decisions together.
    """
    classes = split.probability.shape[1]
    if classes == 2:
        return roc_curve(split.labels, split.probability[:, 1])
    return roc_curve(np.eye(classes, dtype=np.int64)[split.labels].ravel(), split.probability.ravel())
