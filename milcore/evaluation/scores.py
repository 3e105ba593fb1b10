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
from milcore.metrics.classification import Estimate, class_estimates, estimates
from milcore.metrics.curves import RocCurve, roc_curve
from milcore.metrics.delong import delong
from milcore.metrics.wilson import ScoreIntervals, class_score_intervals, score_intervals


class SplitMetrics(NamedTuple):
    """Metrics of the test split, with intervals of resampled patients unless said otherwise.

    Args:
        overall: of bags.
        of_class: of each class of more than two, empty for two.
        of_patients: empty where every patient has one bag.
        calibrated: Brier score and ECE after temperature scaling.
        score: the same with their score intervals, which the report shows.
        auroc_delong: AUROC with DeLong's interval, undefined for more than two classes.
    """

    overall: dict[str, Estimate]
    of_class: tuple[dict[str, Estimate], ...]
    of_patients: dict[str, Estimate]
    calibrated: dict[str, Estimate]
    score: ScoreIntervals
    auroc_delong: Estimate

    @property
    def auroc(self) -> Estimate:
        """AUROC with Newcombe's interval."""
        return self.score.overall.get("auroc", self.overall["auroc"])


def measure(test: SplitPredictions, rule: DecisionRule, seed: int) -> SplitMetrics:
    """Compute all metrics of the test split.

    Args:
        test: used here only; the rule does not depend on it.
        rule: of the validation split.
        seed: of the resampling.
    """
    calibrated = calibrate(test.probability, rule.temperature.value)
    if rule.threshold is None:
        metrics = class_estimates(test.labels, test.probability, test.patients, seed)
        after = class_estimates(test.labels, calibrated, test.patients, seed).overall
        of_classes = class_score_intervals(test.labels, test.probability, test.patients)
        return SplitMetrics(
            overall=metrics.overall,
            of_class=metrics.of_class,
            of_patients={},
            calibrated=_calibration_errors(after),
            score=ScoreIntervals(of_classes.overall, of_classes.of_class, {}),
            auroc_delong=Estimate(math.nan, reason="defined for two classes"),
        )
    positive, threshold = test.probability[:, 1], rule.threshold.value
    after = estimates(test.labels, calibrated[:, 1], test.patients, 0.5, seed)
    score = score_intervals(test.labels, positive, positive >= threshold, test.patients)
    of_patients, score_of_patients = _of_patients(test, threshold, seed)
    return SplitMetrics(
        overall=estimates(test.labels, positive, test.patients, threshold, seed),
        of_class=(),
        of_patients=of_patients,
        calibrated=_calibration_errors(after),
        score=ScoreIntervals(score, (), score_of_patients),
        auroc_delong=delong(test.labels, positive, test.patients),
    )


def _calibration_errors(metrics: dict[str, Estimate]) -> dict[str, Estimate]:
    return {name: metrics[name] for name in ("brier", "ece")}


def _of_patients(
    test: SplitPredictions, threshold: float, seed: int
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Metrics of patients, with either interval; empty where every patient has one bag."""
    patients = sorted(set(test.patients))
    if len(patients) == len(test.entries):
        return {}, {}
    patient = np.searchsorted(patients, test.patients)
    labels, probability = np.zeros(len(patients), np.int64), np.zeros(len(patients))
    np.maximum.at(labels, patient, test.labels)
    np.maximum.at(probability, patient, test.probability[:, 1])
    return (
        estimates(labels, probability, patients, threshold, seed),
        score_intervals(labels, probability, probability >= threshold, patients),
    )


def roc_of(split: SplitPredictions) -> RocCurve:
    """ROC curve of the positive class of two, or the micro-average of more.

    The micro-average takes all one-against-rest decisions together.
    """
    classes = split.probability.shape[1]
    if classes == 2:
        return roc_curve(split.labels, split.probability[:, 1])
    return roc_curve(np.eye(classes, dtype=np.int64)[split.labels].ravel(), split.probability.ravel())
