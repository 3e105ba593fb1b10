"""DeLong's interval against its own slow formula, and how often both intervals cover the truth."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from milcore.metrics.classification import auroc_estimate
from milcore.metrics.delong import delong


def slow(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """AUROC and its variance by the double loop of DeLong et al. 1988."""
    positives, negatives = scores[labels == 1], scores[labels == 0]
    won = np.array([[1.0 if p > n else 0.5 if p == n else 0.0 for n in negatives] for p in positives])
    variance = won.mean(axis=1).var(ddof=1) / len(positives) + won.mean(axis=0).var(ddof=1) / len(negatives)
    return won.mean(), variance


def test_one_slide_a_patient_is_delong_s_formula() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 60)
    scores = np.round(random.normal(labels, 1.0), 1)  # with ties
    estimate = delong(labels, scores, [str(k) for k in range(60)])
    area, variance = slow(labels, scores)
    assert estimate.value == pytest.approx(area)
    assert estimate.high - estimate.value == pytest.approx(norm.ppf(0.975) * math.sqrt(variance))


def test_copies_of_a_slide_do_not_narrow_the_interval() -> None:
    """Every slide three times under its own patient: the interval must not shrink by the root of three."""
    random = np.random.default_rng(2)
    labels, patients = np.arange(40) % 2, [str(k) for k in range(40)]
    scores = random.normal(labels, 1.0)
    once = delong(labels, scores, patients)
    thrice = delong(np.repeat(labels, 3), np.repeat(scores, 3), list(np.repeat(patients, 3)))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    alone = delong(np.repeat(labels, 3), np.repeat(scores, 3), [str(k) for k in range(120)])
    assert alone.high - alone.low < 0.7 * (once.high - once.low)


def test_one_class_has_no_auroc() -> None:
    estimate = delong(np.ones(3, np.int64), np.arange(3.0), ["a", "b", "c"])
    assert math.isnan(estimate.value)
    assert estimate.reason == "the split holds one class only"


def test_intervals_cover_the_truth_at_about_their_nominal_rate() -> None:
    """Patients with two alike slides; scores N(0, 1) and N(1, 1) have AUROC Phi(1 / sqrt 2). 150 cohorts, 95 % +- 4."""
    random = np.random.default_rng(3)
    truth = norm.cdf(1 / math.sqrt(2))
    labels = np.repeat(np.arange(80) % 2, 2)
    patients = [str(k) for k in np.repeat(np.arange(80), 2)]
    covered = np.zeros((150, 2))
    for row in covered:
        scores = np.repeat(random.normal(labels[::2], 0.9), 2) + random.normal(0, math.sqrt(1 - 0.81), 160)
        two = np.stack([-scores, scores], axis=1)
        intervals = delong(labels, scores, patients), auroc_estimate(labels, two, patients, seed=0)
        row[:] = [interval.low <= truth <= interval.high for interval in intervals]
    assert np.all(np.abs(covered.mean(axis=0) - 0.95) <= 0.04), covered.mean(axis=0)
