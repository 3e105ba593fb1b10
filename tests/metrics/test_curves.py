"""Curves and their bands against areas worked by hand and a bootstrap written as a loop."""

from itertools import pairwise

import numpy as np
import pytest

from milcore.metrics.curves import curve_bands, precision_recall, roc_curve
from milcore.metrics.resamples import patient_weights

LABELS = np.array([0, 0, 1, 1, 0, 1])
PROBABILITY = np.array([0.1, 0.4, 0.4, 0.8, 0.6, 0.9])


def test_roc_runs_from_corner_to_corner():
    points = list(zip(*roc_curve(LABELS, PROBABILITY)[:2], strict=True))
    assert points[0] == (0.0, 0.0)
    assert points[-1] == (1.0, 1.0)
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
    assert area == pytest.approx(7.5 / 9)


def test_precision_is_the_share_of_positives_among_those_predicted_worked_by_hand():
    """Predicted positive from the highest down: +, +, -, then 0.4 twice (+ and -), then -."""
    expected = [(0, 1), (1 / 3, 1), (2 / 3, 1), (2 / 3, 2 / 3), (1, 3 / 5), (1, 1 / 2)]
    np.testing.assert_allclose(precision_recall(LABELS, PROBABILITY), expected)
    assert precision_recall(np.ones(3, int), np.array([0.1, 0.2, 0.3])) == []


def test_bands_equal_a_bootstrap_written_as_a_loop():
    """At a false positive rate of 0.3 the resampled ROC is read off its line, at a recall of 0.5 precision at the
    threshold that reaches it."""
    random = np.random.default_rng(0)
    labels = np.arange(30) % 2
    probability = np.round(random.normal(labels, 1.0) / 8 + 0.5, 2)  # with ties
    patients = [f"p{k // 2}" for k in range(30)]
    roc, recall = curve_bands(labels, probability, patients, seed=5)
    hits, precisions = [], []
    for weights in patient_weights(patients, 2000, seed=5).astype(int):
        drawn = np.repeat(np.arange(30), weights)
        if len(set(labels[drawn])) < 2:
            continue
        positive, score = labels[drawn] == 1, probability[drawn]
        predictions = [score >= threshold for threshold in (2.0, *sorted(set(score), reverse=True))]
        tpr, fpr = ([np.mean(predicted[of]) for predicted in predictions] for of in (positive, ~positive))
        hits.append(np.interp(0.3, fpr, tpr))
        precisions.append(
            np.mean(positive[next(predicted for predicted in predictions if np.mean(predicted[positive]) >= 0.5)])
        )
    assert (roc.low[30], roc.high[30]) == pytest.approx(tuple(np.percentile(hits, [2.5, 97.5])))
    assert (recall.low[50], recall.high[50]) == pytest.approx(tuple(np.percentile(precisions, [2.5, 97.5])))
    assert curve_bands(np.ones(3, int), np.array([0.1, 0.2, 0.3]), list("abc"), seed=0)[0].x == []
