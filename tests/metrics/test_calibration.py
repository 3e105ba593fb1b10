"""Calibration against values worked by hand and a slow formula."""

import math

import numpy as np
import pytest

from milcore.metrics.calibration import calibrate, calibration_error, fit_temperature


def test_calibration_error_is_the_gap_of_each_bin_worked_by_hand() -> None:
    """Bins 0.1: {0.15: 0}, 0.8: {0.82, 0.88: one of two}; gaps 0.15 and |1.7 - 1| over three slides."""
    labels, probability = np.array([0, 1, 0]), np.array([0.15, 0.82, 0.88])
    assert calibration_error(np.ones((1, 3)), labels, probability)[0] == pytest.approx((0.15 + 0.7) / 3)
    doubled = calibration_error(np.array([[0.0, 2.0, 1.0]]), labels, probability)[0]
    assert doubled == pytest.approx(abs(2 * 0.82 + 0.88 - 2) / 3)
    assert math.isnan(calibration_error(np.zeros((1, 3)), labels, probability)[0])


def test_a_temperature_divides_the_log_odds() -> None:
    warm = calibrate(np.array([[0.2, 0.8]]), 2.0)
    assert warm[0, 1] == pytest.approx(2 / 3)  # odds 4, their root 2
    np.testing.assert_allclose(calibrate(np.array([[0.2, 0.8]]), 1.0), [[0.2, 0.8]])


@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_that_labels_were_drawn_with_is_found(classes: int) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (20_000, classes))
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (truth.cumsum(axis=1) < random.random((20_000, 1))).sum(axis=1)
    sharp = truth**2.5 / (truth**2.5).sum(axis=1, keepdims=True)
    assert fit_temperature(labels, sharp).value == pytest.approx(2.5, rel=0.05)


def test_where_no_temperature_is_best_it_stays_1() -> None:
    right = np.array([[0.9, 0.1], [0.3, 0.7]])
    assert fit_temperature(np.array([0, 1]), right).value == 1.0
    assert "every validation slide is called right" in fit_temperature(np.array([0, 1]), right).origin
    assert fit_temperature(np.array([1, 1]), right) == (1.0, fit_temperature(np.array([1, 1]), right).origin)
    assert fit_temperature(np.array([1, 0]), right).value == pytest.approx(100.0, rel=0.01)
