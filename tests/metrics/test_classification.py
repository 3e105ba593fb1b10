"""Metrics against numbers worked by hand and against scikit-learn on resampled data."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from milcore.metrics.calibration import reliability
from milcore.metrics.classification import (
    auroc_estimate,
    choose_threshold,
    class_estimates,
    confusion,
    estimates,
    mean_estimate,
    point_values,
)
from milcore.metrics.curves import roc_curve
from milcore.metrics.resamples import patient_weights

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


def test_interval_equals_a_bootstrap_written_as_a_loop():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    scores = rng.normal(size=40) + labels
    probability = (scores - scores.min()) / np.ptp(scores)
    patients = [f"p{i // 2 % 15}" for i in range(40)]
    auroc = estimates(labels, probability, patients, 0.5, seed=7)["auroc"]
    looped = []
    for weights in patient_weights(patients, 2000, seed=7).astype(int):
        drawn = np.repeat(np.arange(40), weights)
        positives, negatives = (probability[drawn][labels[drawn] == label] for label in (1, 0))
        if len(positives) and len(negatives):
            apart = positives[:, None] - negatives
            looped.append(np.mean(apart > 0) + np.mean(apart == 0) / 2)
    assert (auroc.low, auroc.high) == pytest.approx(tuple(np.percentile(looped, [2.5, 97.5])))
    assert auroc.low < auroc.value < auroc.high


def test_mean_over_slides_has_an_interval_over_patients():
    """Two patients, values 0 and 1: a resample holds two of one, two of the other, or one of each."""
    mean = mean_estimate(np.array([0.0, 1.0]), ["a", "b"], seed=0)
    assert (mean.value, mean.low, mean.high) == (0.5, 0.0, 1.0)
    ranked = auroc_estimate(LABELS, np.stack([3 - PROBABILITY, 10 * PROBABILITY - 3], axis=1), list("abcdef"), seed=0)
    assert ranked == estimates(LABELS, PROBABILITY, list("abcdef"), 0.5, seed=0)["auroc"]


def test_one_class_is_nan_with_its_reason():
    metrics = estimates(np.ones(3, int), np.array([0.2, 0.7, 0.9]), ["a", "b", "c"], 0.5, seed=0)
    for name in ("auroc", "auprc", "balanced_accuracy", "f1", "sensitivity", "specificity"):
        assert math.isnan(metrics[name].value)
        assert metrics[name].reason == "the split holds one class only"
    assert metrics["accuracy"].value == pytest.approx(2 / 3)
    assert roc_curve(np.zeros(2, int), np.array([0.1, 0.2])) == ([], [], [])


def test_an_empty_split_is_nan_with_its_reason():
    nothing = np.zeros(0, int), np.zeros(0)
    assert {estimate.reason for estimate in estimates(*nothing, [], 0.5, seed=0).values()} == {
        "the split holds no slide"
    }
    assert confusion(np.zeros(0, int), np.zeros(0, int), 2) == [[0, 0], [0, 0]]
    assert reliability(*nothing, 5) == []


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


def test_reliability_counts_every_slide_once():
    """Bins of 0.5: {0.1, 0.4, 0.4} hold one positive, {0.8, 0.6, 0.9} two; probability 1 belongs to the last bin."""
    bins = reliability(LABELS, PROBABILITY, 2)
    assert bins[0] == pytest.approx((0.3, 1 / 3, 3))
    assert bins[1] == pytest.approx((2.3 / 3, 2 / 3, 3))
    assert reliability(np.array([1]), np.array([1.0]), 5) == [(1.0, 1.0, 1)]


CLASSES = np.array([0, 0, 1, 1, 2, 2, 2])
PROBABILITIES = np.array(
    [
        (0.7, 0.2, 0.1),
        (0.3, 0.5, 0.2),
        (0.2, 0.6, 0.2),
        (0.4, 0.35, 0.25),
        (0.1, 0.1, 0.8),
        (0.25, 0.3, 0.45),
        (0.5, 0.2, 0.3),
    ]
)


def test_several_classes_equal_scikit_learn_one_against_the_rest():
    estimated = class_estimates(CLASSES, PROBABILITIES, list("abcdefg"), seed=0)
    predicted = PROBABILITIES.argmax(axis=1)
    whole = {name: estimate.value for name, estimate in estimated.overall.items()}
    assert whole["auroc"] == pytest.approx(sk.roc_auc_score(CLASSES, PROBABILITIES, multi_class="ovr"))
    assert whole["auprc"] == pytest.approx(sk.average_precision_score(np.eye(3)[CLASSES], PROBABILITIES))
    assert whole["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(CLASSES, predicted))
    assert whole["f1"] == pytest.approx(sk.f1_score(CLASSES, predicted, average="macro"))
    assert whole["accuracy"] == pytest.approx(4 / 7)
    assert whole["brier"] == pytest.approx(sk.brier_score_loss(CLASSES, PROBABILITIES, scale_by_half=False))
    for k, metrics in enumerate(estimated.of_class):
        truth, predicted_k = k == CLASSES, predicted == k
        assert metrics["auroc"].value == pytest.approx(sk.roc_auc_score(truth, PROBABILITIES[:, k]))
        assert metrics["sensitivity"].value == pytest.approx(sk.recall_score(truth, predicted_k))
        assert metrics["specificity"].value == pytest.approx(sk.recall_score(truth, predicted_k, pos_label=False))
        assert metrics["f1"].value == pytest.approx(sk.f1_score(truth, predicted_k))


def test_the_calibration_error_of_several_classes_is_of_the_predicted_one_s_probability():
    """Right at 0.7, 0.6, 0.8 and 0.45, wrong at 0.5, 0.4 and 0.5; the bins from 0.4 and 0.5 hold two slides each."""
    gap = abs(0.4 - 0 + 0.45 - 1) + abs(0.5 + 0.5) + abs(0.6 - 1) + abs(0.7 - 1) + abs(0.8 - 1)
    ece = class_estimates(CLASSES, PROBABILITIES, list("abcdefg"), seed=0).overall["ece"]
    assert ece.value == pytest.approx(gap / 7)


def test_a_class_that_is_not_there_is_nan_with_its_reason_and_leaves_the_means_to_the_others():
    two = CLASSES < 2
    estimated = class_estimates(CLASSES[two], PROBABILITIES[two], list("abcd"), seed=0)
    assert estimated.of_class[2]["auroc"].reason == "the split holds no slide of this class, or only such"
    assert estimated.overall["auroc"].value == pytest.approx(
        (estimated.of_class[0]["auroc"].value + estimated.of_class[1]["auroc"].value) / 2
    )
    nothing = class_estimates(np.zeros(0, int), np.zeros((0, 3)), [], seed=0)
    assert {estimate.reason for estimate in nothing.overall.values()} == {"the split holds no slide"}
