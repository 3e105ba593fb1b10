"""The metrics of a split in many resamples at once. No torch, no I/O.

A resample is a row of weights: how often each slide occurs in it. The unit that is drawn is the patient: two slides of
one patient are not independent. What scikit-learn says of one split is written here for a matrix of such rows, so that
all resamples are one array expression.

Axis words: slide, patient, resample, group (slides of one score).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from milcore.metrics.calibration import calibration_error

RESAMPLES = 2000


def patient_weights(patients: list[str], resamples: int, seed: int) -> Float[np.ndarray, "resample slide"]:
    """How often each slide occurs when n of n patients are drawn with replacement, each with all its slides."""
    names, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return np.asarray(draws[:, patient], dtype=np.float64)


def weighted_values(
    weights: Float[np.ndarray, "resample slide"],
    labels: Int[np.ndarray, " slide"],
    probability: Float[np.ndarray, " slide"],
    called: Bool[np.ndarray, " slide"],
) -> dict[str, Float[np.ndarray, " resample"]]:
    """The metrics of ``point_values`` for every row of slide weights at once; NaN in rows that lack a class."""
    positive = labels == 1
    hit, miss = weights @ (positive & called), weights @ (positive & ~called)
    alarm, reject = weights @ (~positive & called), weights @ (~positive & ~called)
    total = weights.sum(axis=1)
    sensitivity, specificity = ratio(hit, hit + miss), ratio(reject, alarm + reject)
    area, precision = ranking_values(weights, positive, probability)
    return {
        "auroc": area,
        "auprc": precision,
        "accuracy": ratio(hit + reject, total),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": np.where(np.isnan(area), math.nan, ratio(2 * hit, 2 * hit + alarm + miss)),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "brier": ratio(weights @ (probability - labels) ** 2, total),
        "ece": calibration_error(weights, labels, probability),
    }


def weighted_auroc(
    weights: Float[np.ndarray, "resample slide"],
    labels: Int[np.ndarray, " slide"],
    scores: Float[np.ndarray, " slide"],
) -> Float[np.ndarray, " resample"]:
    """AUROC for every row of slide weights; NaN in rows that lack a class."""
    return ranking_values(weights, labels == 1, scores)[0]


class ScoreGroups(NamedTuple):
    """Weights of positive and negative slides in groups of equal score, from the highest down, summed up."""

    hits: Float[np.ndarray, "resample group"]
    alarms: Float[np.ndarray, "resample group"]
    hits_above: Float[np.ndarray, "resample group"]
    alarms_above: Float[np.ndarray, "resample group"]

    @classmethod
    def of(
        cls,
        weights: Float[np.ndarray, "resample slide"],
        positive: Bool[np.ndarray, " slide"],
        scores: Float[np.ndarray, " slide"],
    ) -> "ScoreGroups":
        """One sort for all rows."""
        order = np.argsort(-scores, kind="stable")
        starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
        ranked = weights[:, order]
        hits = np.add.reduceat(ranked * positive[order], starts, axis=1)
        alarms = np.add.reduceat(ranked * ~positive[order], starts, axis=1)
        return cls(hits, alarms, hits.cumsum(axis=1), alarms.cumsum(axis=1))


def ranking_values(
    weights: Float[np.ndarray, "resample slide"],
    positive: Bool[np.ndarray, " slide"],
    scores: Float[np.ndarray, " slide"],
) -> tuple[Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]]:
    """AUROC and average precision per row."""
    if not len(scores):
        nothing = np.full(len(weights), math.nan)
        return nothing, nothing
    its = ScoreGroups.of(weights, positive, scores)
    all_hits, all_alarms = its.hits_above[:, -1], its.alarms_above[:, -1]
    area = ratio((its.alarms * (its.hits_above - its.hits / 2)).sum(axis=1), all_hits * all_alarms)
    at_group = np.nan_to_num(ratio(its.hits_above, its.hits_above + its.alarms_above))
    precision = ratio((its.hits * at_group).sum(axis=1), all_hits)
    return area, np.where(all_alarms > 0, precision, math.nan)


def ratio(top: Float[np.ndarray, "..."], bottom: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """``top / bottom``, NaN where bottom is 0."""
    quotient: np.ndarray = np.divide(top, bottom, out=np.full(np.shape(top), math.nan), where=bottom != 0)
    return quotient
