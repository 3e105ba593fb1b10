"""The area under the ROC curve that epochs are chosen by, and how they rank."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from milcore.metrics.auroc import auroc, macro_auroc
from milcore.training.selection import NO_VALIDATION, Validation


def test_the_area_is_the_share_of_pairs_in_order_and_half_of_those_equal() -> None:
    """Positives 0.8 and 0.5 against 0.5, 0.2 and 0.6: of six pairs four are in order and one is equal."""
    labels, scores = np.array([1, 1, 0, 0, 0]), np.array([0.8, 0.5, 0.5, 0.2, 0.6])
    assert auroc(labels, scores) == pytest.approx(4.5 / 6)


def test_the_area_is_scikit_learn_s_with_many_ties() -> None:
    generator = np.random.default_rng(0)
    for size in (2, 7, 200):
        labels = np.arange(size) % 2
        scores = generator.integers(0, 10, size).astype(np.float64)
        assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_the_area_is_nan_where_a_class_is_missing_or_a_score_is_none() -> None:
    assert math.isnan(auroc(np.zeros(2, int), np.array([0.1, 0.2])))
    assert math.isnan(auroc(np.zeros(0, int), np.zeros(0)))
    assert math.isnan(auroc(np.array([0, 1]), np.array([math.nan, 0.2])))


def test_of_several_classes_it_is_the_mean_over_those_present() -> None:
    """Class 0 against the rest: all pairs in order; class 1: one of two; class 3 has no bag, class 2 none in order."""
    labels = np.array([0, 1, 2])
    scores = np.array([[0.9, 0.5, 0.5, 0.0], [0.1, 0.2, 0.9, 0.0], [0.2, 0.1, 0.1, 0.0]])
    assert macro_auroc(labels, scores) == pytest.approx((1.0 + 0.5 + 0.0) / 3)


def test_a_higher_area_ranks_first_then_a_smaller_loss_and_nothing_ranks_last() -> None:
    epochs = [
        NO_VALIDATION,
        Validation(0.3, 0.8),
        Validation(0.5, 0.9),
        Validation(0.2, 0.8),
        Validation(0.9, math.nan),
    ]
    assert sorted(epochs, key=lambda validation: validation.rank) == [epochs[k] for k in (2, 3, 1, 4, 0)]
