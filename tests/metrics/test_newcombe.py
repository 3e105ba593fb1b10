"""Newcombe's interval of AUROC: its equation, its ends, and how often it covers the truth."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from milcore.metrics.delong import delong
from milcore.metrics.newcombe import newcombe

COHORTS = 1000


def alone(count: int) -> list[str]:
    return [str(k) for k in range(count)]


def test_at_its_ends_the_distance_is_1_96_standard_errors_of_the_end() -> None:
    random = np.random.default_rng(1)
    labels = (np.arange(30) < 12).astype(np.int64)
    estimate = newcombe(labels, random.normal(labels, 1.0), alone(30))
    m, n, mean = 12, 18, 14
    for t in (estimate.low, estimate.high):
        q1, q2 = t / (2 - t), 2 * t * t / (1 + t)
        # Hanley and McNeil's variance, with the mean of m and n in place of each in its numerator
        variance = (t * (1 - t) + mean * (q1 - t * t) + mean * (q2 - t * t)) / (m * n)
        assert abs(estimate.value - t) == pytest.approx(norm.ppf(0.975) * math.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("patients", [4, 10, 100])
def test_a_perfect_ranking_has_an_interval_with_width(patients: int) -> None:
    labels = np.arange(patients) % 2
    perfect = newcombe(labels, labels.astype(float), alone(patients))
    assert perfect.value == perfect.high == 1.0
    assert perfect.low < 1.0 - 1.0 / patients
    assert delong(labels, labels.astype(float), alone(patients)).low == 1.0
    none = newcombe(labels, -labels.astype(float), alone(patients))
    assert (none.low, none.high) == pytest.approx((0.0, 1.0 - perfect.low))


def test_copies_of_a_slide_do_not_narrow_the_interval() -> None:
    random = np.random.default_rng(2)
    labels = np.arange(40) % 2
    scores = random.normal(labels, 1.0)
    once = newcombe(labels, scores, alone(40))
    thrice = newcombe(np.repeat(labels, 3), np.repeat(scores, 3), list(np.repeat(alone(40), 3)))
    assert thrice == once


def test_one_class_has_no_auroc() -> None:
    estimate = newcombe(np.ones(3, np.int64), np.arange(3.0), ["a", "b", "c"])
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.low)
    assert estimate.reason == "the split holds one class only"


@pytest.mark.parametrize("truth", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("slides", [10, 30, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.usefixtures("without_type_checks")
def test_it_covers_the_truth_about_as_often_as_it_says(truth: float, slides: int) -> None:
    """Scores N(0, 1) and N(d, 1) have AUROC Phi(d / sqrt 2); half of the slides are positive, one a patient."""
    random = np.random.default_rng(5)
    labels, distance = np.arange(slides) % 2, math.sqrt(2) * norm.ppf(truth)
    covered = 0
    for _ in range(COHORTS):
        interval = newcombe(labels, random.normal(labels * distance, 1.0), alone(slides))
        covered += interval.low <= truth <= interval.high
    assert 0.93 <= covered / COHORTS <= 0.985, covered / COHORTS
