"""Metrics of a split in many bootstrap resamples at once. No torch, no I/O.

The metrics are scikit-learn's, over the matrix of weights of ``resamples``, so that all resamples are one array
expression.

Axis words: slide, patient, resample, group (slides of one score).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from milcore.metrics.calibration import calibration_error
from milcore.metrics.resamples import ratio, row_blocks


def weighted_values(
    weights: Float[np.ndarray, "resample slide"],
    labels: Int[np.ndarray, " slide"],
    probability: Float[np.ndarray, " slide"],
    predicted: Bool[np.ndarray, " slide"],
) -> dict[str, Float[np.ndarray, " resample"]]:
    """The metrics of ``point_values`` for every row of slide weights.

    NaN in rows that lack a class.

    Args:
        weights: of the slides in each resample.
        labels: 0 or 1.
        probability: of the positive class, 0 to 1.
        predicted: True where a slide is predicted positive.
    """
    positive = labels == 1
    tp, fn = weights @ (positive & predicted), weights @ (positive & ~predicted)
    fp, tn = weights @ (~positive & predicted), weights @ (~positive & ~predicted)
    total = weights.sum(axis=1)
    sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, fp + tn)
    area, precision = ranking_values(weights, positive, probability)
    return {
        "auroc": area,
        "auprc": precision,
        "accuracy": ratio(tp + tn, total),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": np.where(np.isnan(area), math.nan, ratio(2 * tp, 2 * tp + fp + fn)),
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
    """Weights of positives and negatives by score, from the highest score down.

    ``positives`` and ``negatives`` are weights of slides that share a score, ``true_positives`` and ``false_positives``
    their cumulative sums: those of a threshold at that score.
    """

    positives: Float[np.ndarray, "resample group"]
    negatives: Float[np.ndarray, "resample group"]
    true_positives: Float[np.ndarray, "resample group"]
    false_positives: Float[np.ndarray, "resample group"]

    @classmethod
    def of(
        cls,
        weights: Float[np.ndarray, "resample slide"],
        positive: Bool[np.ndarray, " slide"],
        scores: Float[np.ndarray, " slide"],
    ) -> "ScoreGroups":
        """Group the slides by score, with one sort for all resamples."""
        order = np.argsort(-scores, kind="stable")
        starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
        sorted_weights = weights[:, order]
        positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
        negatives = np.add.reduceat(sorted_weights * ~positive[order], starts, axis=1)
        return cls(positives, negatives, positives.cumsum(axis=1), negatives.cumsum(axis=1))


def ranking_values(
    weights: Float[np.ndarray, "resample slide"],
    positive: Bool[np.ndarray, " slide"],
    scores: Float[np.ndarray, " slide"],
) -> tuple[Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]]:
    """AUROC and average precision of each resample; NaN in rows that lack a class."""
    if not len(scores):
        undefined = np.full(len(weights), math.nan)
        return undefined, undefined
    area, precision = np.concatenate(
        [_ranking_values(weights[rows], positive, scores) for rows in row_blocks(weights)], axis=1
    )
    return area, precision


def _ranking_values(
    weights: Float[np.ndarray, "resample slide"],
    positive: Bool[np.ndarray, " slide"],
    scores: Float[np.ndarray, " slide"],
) -> tuple[Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]]:
    groups = ScoreGroups.of(weights, positive, scores)
    tp, fp = groups.true_positives, groups.false_positives
    all_positives, all_negatives = tp[:, -1], fp[:, -1]
    area = ratio((groups.negatives * (tp - groups.positives / 2)).sum(axis=1), all_positives * all_negatives)
    precision_at_group = np.nan_to_num(ratio(tp, tp + fp))
    average_precision = ratio((groups.positives * precision_at_group).sum(axis=1), all_positives)
    return area, np.where(all_negatives > 0, average_precision, math.nan)
