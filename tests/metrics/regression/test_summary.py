"""The summary of a split: values, intervals of resampled patients, sites, and what a split cannot define."""

import math

import numpy as np
import pytest
from sklearn.metrics import r2_score

from milcore.errors import InputError
from milcore.metrics.regression.scale import target_scale
from milcore.metrics.regression.summary import (
    CONSTANT_PREDICTION,
    CONSTANT_TRUTH,
    NO_BAG,
    ONE_BAG,
    TOO_ALIKE,
    ValuePredictions,
    r2_estimate,
    regression_metrics,
)

NAMES = ["r2", "mae", "rmse", "pearson", "spearman", "bias", "lower_limit", "upper_limit"]
OF_SPREAD = {"r2", "pearson", "spearman", "lower_limit", "upper_limit"}


def predictions_of(true: np.ndarray, predicted: np.ndarray, **others: object) -> ValuePredictions:
    patients = [f"p{k}" for k in range(len(true))]
    return ValuePredictions(true, predicted, **({"patients": patients} | others))


def drawn(bags: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    true = random.normal(50, 10, bags)
    return true, true + random.normal(2, 5, bags)


def test_every_metric_lies_in_its_interval_and_limits_enclose_the_bias() -> None:
    true, predicted = drawn()
    metrics = regression_metrics(predictions_of(true, predicted), 0)
    assert list(metrics.overall) == NAMES
    assert (metrics.bags, metrics.patients, metrics.of_sites) == (40, 40, {})
    for estimate in metrics.overall.values():
        assert estimate.low < estimate.value < estimate.high
    values = {name: estimate.value for name, estimate in metrics.overall.items()}
    assert values["bias"] == pytest.approx((predicted - true).mean())
    half = 1.96 * (predicted - true).std(ddof=1)
    assert values["upper_limit"] - values["bias"] == pytest.approx(half)
    assert values["bias"] - values["lower_limit"] == pytest.approx(half)
    assert r2_estimate(predictions_of(true, predicted), 0) == metrics.overall["r2"]


def test_bags_of_a_patient_are_resampled_together() -> None:
    """Each bag twice, as two slides of a patient: what is a mean has the interval that it had."""
    true, predicted = drawn()
    once = regression_metrics(predictions_of(true, predicted), 3).overall
    patients = [f"p{k}" for k in range(40)]
    twice = regression_metrics(ValuePredictions(np.tile(true, 2), np.tile(predicted, 2), patients * 2), 3)
    assert (twice.bags, twice.patients) == (80, 40)
    for name in ("r2", "mae", "rmse", "pearson", "spearman", "bias"):
        for end in ("value", "low", "high"):
            assert getattr(twice.overall[name], end) == pytest.approx(getattr(once[name], end), rel=1e-9), name


def test_sites_are_measured_alone() -> None:
    true, predicted = drawn()
    sites = [("north", "south")[k % 2] for k in range(40)]
    metrics = regression_metrics(predictions_of(true, predicted, sites=sites), 0)
    assert list(metrics.of_sites) == ["north", "south"]
    assert metrics.of_sites["south"].overall["r2"].value == pytest.approx(r2_score(true[1::2], predicted[1::2]))
    assert metrics.of_sites["south"].bags == 20


DEGENERATE = {
    "no bag": ([], [], dict.fromkeys(NAMES, NO_BAG)),
    "one bag": ([3.0], [4.0], dict.fromkeys(OF_SPREAD, ONE_BAG)),
    "constant truth": ([0.1] * 5, [1.0, 2, 3, 4, 5], dict.fromkeys(["r2", "pearson", "spearman"], CONSTANT_TRUTH)),
    "constant prediction": (
        [1.0, 2, 3, 4, 5],
        [0.1] * 5,
        dict.fromkeys(["pearson", "spearman"], CONSTANT_PREDICTION),
    ),
    "differences that underflow": (
        [0.0, 1e-200, 2e-200],
        [0.0, 1.0, 2.0],
        dict.fromkeys(["r2", "pearson"], TOO_ALIKE),
    ),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_what_a_split_cannot_define_has_a_reason_and_the_rest_a_value(case: str) -> None:
    true, predicted, reasons = DEGENERATE[case]
    metrics = regression_metrics(predictions_of(np.array(true), np.array(predicted)), 0)
    for name, estimate in metrics.overall.items():
        assert estimate.reason == reasons.get(name), name
        assert math.isnan(estimate.value) == (name in reasons), name


def test_mean_and_standard_deviation_are_by_hand() -> None:
    assert target_scale(np.array([2.0, 4, 4, 4, 5, 5, 7, 9])) == (5.0, 2.0)


@pytest.mark.parametrize(
    ("values", "got"),
    [
        ([], "no training bag"),
        ([0.1] * 7, r"only 0\.1 in 7 training bag\(s\)"),
        ([1e-200, 2e-200], "1e-200 to 2e-200 in 2 training bags"),
        ([-1e200, 1e200], "-1e[+]200 to 1e[+]200 in 2 training bags"),
    ],
)
def test_values_without_a_scale_are_one_line(values: list[float], got: str) -> None:
    with pytest.raises(InputError, match=f"target_column: expected values that differ in training.*got {got}; allowed"):
        target_scale(np.array(values))
