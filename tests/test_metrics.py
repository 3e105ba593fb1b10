"""Metrics against numbers worked by hand and against scikit-learn on resampled data."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from milcore.calibration import reliability
from milcore.metrics import (
    auroc,
    auroc_estimate,
    choose_threshold,
    confusion,
    estimates,
    mean_estimate,
    patient_weights,
    point_values,
    roc_curve,
    weighted_auroc,
    weighted_values,
)

LABELS = np.array([0, 0, 1, 1, 0, 1])
PROBABILITY = np.array([0.1, 0.4, 0.4, 0.8, 0.6, 0.9])


def test_point_values_are_those_worked_by_hand():
    """Pairs won: 0.4 beats 0.1, ties 0.4, loses to 0.6; 0.8 and 0.9 beat all three: (1 + 1/2 + 3 + 3) / 9."""
    values = point_values(LABELS, PROBABILITY, PROBABILITY >= 0.5)
    assert values["auroc"] == pytest.approx(7.5 / 9)
    assert values["auprc"] == pytest.approx(1 / 3 + 1 / 3 + (1 / 3) * (3 / 5))
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["sensitivity"] == pytest.approx(2 / 3)
    assert values["specificity"] == pytest.approx(2 / 3)
    assert values["balanced_accuracy"] == pytest.approx(2 / 3)
    assert values["f1"] == pytest.approx(2 / 3)
    assert values["brier"] == pytest.approx((0.01 + 0.16 + 0.36 + 0.04 + 0.36 + 0.01) / 6)
    assert confusion(LABELS, (PROBABILITY >= 0.5).astype(int), 2) == [[2, 1], [1, 2]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=30), st.integers(0, 5))
def test_weighted_values_equal_scikit_learn_on_repeated_slides(rows, seed):
    """A row of weights means the same as a data set in which each slide is repeated that often."""
    labels, probability = np.array([r[0] for r in rows]), np.array([r[1] / 5 for r in rows])
    weights = np.random.default_rng(seed).integers(0, 3, size=(4, len(rows))).astype(float)
    found = weighted_values(weights, labels, probability, probability >= 0.5)
    for row in range(len(weights)):
        repeat = weights[row].astype(int)
        if not repeat.sum():
            continue
        repeated = np.repeat(labels, repeat), np.repeat(probability, repeat)
        if len(np.unique(repeated[0])) == 2:
            for name, value in point_values(*repeated, repeated[1] >= 0.5).items():
                assert found[name][row] == pytest.approx(value), name
        else:
            assert math.isnan(found["auroc"][row])
            assert math.isnan(found["auprc"][row])


def test_weights_draw_whole_patients_as_many_as_there_are():
    patients = ["a", "b", "a", "c", "b", "b"]
    weights = patient_weights(patients, 500, seed=3)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, 0] + weights[:, 1] + weights[:, 3], 3)
    np.testing.assert_array_equal(weights, patient_weights(patients, 500, seed=3))


def test_interval_equals_a_bootstrap_written_as_a_loop():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    scores = rng.normal(size=40) + labels
    probability = (scores - scores.min()) / np.ptp(scores)
    patients = [f"p{i // 2 % 15}" for i in range(40)]
    found = estimates(labels, probability, patients, 0.5, seed=7)["auroc"]
    looped = []
    for weights in patient_weights(patients, 2000, seed=7).astype(int):
        drawn = np.repeat(np.arange(40), weights)
        if len(set(labels[drawn])) == 2:
            looped.append(sk.roc_auc_score(labels[drawn], probability[drawn]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(looped, [2.5, 97.5])))
    assert found.low < found.value < found.high


def test_mean_over_slides_has_an_interval_over_patients():
    """Two patients, values 0 and 1: a resample holds two of one, two of the other, or one of each."""
    found = mean_estimate(np.array([0.0, 1.0]), ["a", "b"], seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    ranked = auroc_estimate(LABELS, np.stack([3 - PROBABILITY, 10 * PROBABILITY - 3], axis=1), list("abcdef"), seed=0)
    assert ranked == estimates(LABELS, PROBABILITY, list("abcdef"), 0.5, seed=0)["auroc"]


def test_one_class_is_nan_with_its_reason():
    found = estimates(np.ones(3, int), np.array([0.2, 0.7, 0.9]), ["a", "b", "c"], 0.5, seed=0)
    for name in ("auroc", "auprc", "balanced_accuracy", "f1", "sensitivity", "specificity"):
        assert math.isnan(found[name].value)
        assert found[name].reason == "the split holds one class only"
    assert found["accuracy"].value == pytest.approx(2 / 3)
    assert math.isnan(auroc(np.zeros(2, int), np.array([0.1, 0.2])))
    assert roc_curve(np.zeros(2, int), np.array([0.1, 0.2])) == ([], [], [])


def test_an_empty_split_is_nan_with_its_reason():
    nothing = np.zeros(0, int), np.zeros(0)
    assert {its.reason for its in estimates(*nothing, [], 0.5, seed=0).values()} == {"the split holds no slide"}
    assert confusion(np.zeros(0, int), np.zeros(0, int), 2) == [[0, 0], [0, 0]]
    assert reliability(*nothing, 5) == []


def test_a_row_that_lacks_a_class_has_no_auroc():
    weights = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    found = weighted_auroc(weights, np.array([0, 0, 1]), np.array([0.1, 0.9, 0.5]))
    assert math.isnan(found[0])
    assert found[1] == 1.0


@pytest.mark.parametrize(
    ("labels", "probability", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.8], 0.5),  # 0.5 separates as well as the midpoint 0.4
        ([0, 0, 1, 1], [0.1, 0.2, 0.4, 0.8], 0.3),
        ([0, 1, 0, 1], [0.1, 0.7, 0.8, 0.9], 0.5),  # 0.4 is as good, 0.5 nearer to itself
        ([1, 1], [0.2, 0.9], 0.5),
        ([], [], 0.5),
    ],
)
def test_threshold_is_the_best_on_validation_nearest_to_one_half(labels, probability, expected):
    threshold = choose_threshold(np.array(labels, int), np.array(probability, float))
    assert threshold.value == pytest.approx(expected)


def test_roc_runs_from_corner_to_corner():
    points = list(zip(*roc_curve(LABELS, PROBABILITY)[:2], strict=True))
    assert points[0] == (0.0, 0.0)
    assert points[-1] == (1.0, 1.0)
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
    assert area == pytest.approx(7.5 / 9)


def test_reliability_counts_every_slide_once():
    """Bins of 0.5: {0.1, 0.4, 0.4} hold one positive, {0.8, 0.6, 0.9} two; probability 1 belongs to the last bin."""
    found = reliability(LABELS, PROBABILITY, 2)
    assert found[0] == pytest.approx((0.3, 1 / 3, 3))
    assert found[1] == pytest.approx((2.3 / 3, 2 / 3, 3))
    assert reliability(np.array([1]), np.array([1.0]), 5) == [(1.0, 1.0, 1)]
