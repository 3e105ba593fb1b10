"""Metrics of predicted numbers: equal to scikit-learn's and scipy's, ties included, whole and in every resample."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from milcore.metrics.regression.agreement import (
    is_constant,
    r2,
    weighted_deviation,
    weighted_mean,
    weighted_pearson,
    weighted_r2,
    weighted_spearman,
)
from milcore.metrics.resamples import MOST_VALUES, patient_weights

SEEDS = range(8)
FAR = {"near 0": 0.0, "far from 0": 1e5}


def tied(seed: int, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Sixty true and predicted values on a grid, so that both have ties, some of them with each other."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 12, 60) / 4
    return true + offset, np.round((true + random.normal(size=60)) * 2) / 2 + offset


def ones(values: np.ndarray) -> np.ndarray:
    return np.ones((1, len(values)))


@pytest.mark.parametrize("offset", FAR.values(), ids=FAR)
@pytest.mark.parametrize("seed", SEEDS)
def test_whole_metrics_equal_those_of_scikit_learn_and_scipy(seed: int, offset: float) -> None:
    true, predicted = tied(seed, offset)
    weights, errors = ones(true), predicted - true
    assert r2(true, predicted) == pytest.approx(r2_score(true, predicted), abs=1e-9)
    assert weighted_mean(weights, np.abs(errors))[0] == pytest.approx(mean_absolute_error(true, predicted), abs=1e-9)
    rmse = np.sqrt(weighted_mean(weights, errors**2)[0])
    assert rmse == pytest.approx(root_mean_squared_error(true, predicted), abs=1e-9)
    assert weighted_pearson(weights, true, predicted)[0] == pytest.approx(pearsonr(true, predicted)[0], abs=1e-9)
    assert weighted_spearman(weights, true, predicted)[0] == pytest.approx(spearmanr(true, predicted)[0], abs=1e-9)
    assert weighted_deviation(weights, errors)[0] == pytest.approx(errors.std(ddof=1), abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_metrics_of_a_resample_are_those_of_its_bags_one_by_one(seed: int) -> None:
    true, predicted = tied(seed)
    weights = patient_weights([f"p{k // 2}" for k in range(60)], 12, seed)
    values = np.array(
        [
            weighted_r2(weights, true, predicted),
            weighted_pearson(weights, true, predicted),
            weighted_spearman(weights, true, predicted),
            weighted_deviation(weights, predicted - true),
        ]
    )
    for row, of_row in zip(weights.astype(np.int64), values.T, strict=True):
        y, p = np.repeat(true, row), np.repeat(predicted, row)
        expected = [r2_score(y, p), pearsonr(y, p)[0], spearmanr(y, p)[0], (p - y).std(ddof=1)]
        np.testing.assert_allclose(of_row, expected, atol=1e-9)


def test_many_resamples_are_computed_in_blocks_alike() -> None:
    """More values than one expression may hold: the last rows are those of a block of their own."""
    true, predicted = tied(0)
    weights = patient_weights([f"p{k}" for k in range(60)], MOST_VALUES // 60 + 5, 1)
    whole = weighted_spearman(weights, true, predicted)
    np.testing.assert_array_equal(whole[-5:], weighted_spearman(weights[-5:], true, predicted))
    np.testing.assert_array_equal(is_constant(weights, true), np.zeros(len(weights), bool))


def test_the_differences_of_two_flow_meters_are_those_of_the_paper() -> None:
    """Bland, Altman 1986, table 1: the mean difference is -2.1 l/min, the standard deviation 38.8 l/min."""
    wright = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427.0])
    mini = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451.0])
    assert weighted_mean(ones(mini), wright - mini)[0] == pytest.approx(-2.1, abs=0.05)
    assert weighted_deviation(ones(mini), wright - mini)[0] == pytest.approx(38.8, abs=0.05)


CONSTANT = np.full(5, 0.1)


@pytest.mark.parametrize(("true", "predicted"), [(CONSTANT, np.arange(5.0)), (np.arange(5.0), CONSTANT)])
def test_correlations_of_a_constant_are_undefined(true: np.ndarray, predicted: np.ndarray) -> None:
    """0.1 is no binary fraction, so that rounded sums of it need not cancel."""
    weights = np.array([[1.0, 1, 1, 1, 1], [3.0, 1, 0, 0, 1]])
    assert np.isnan(weighted_pearson(weights, true, predicted)).all()
    assert np.isnan(weighted_spearman(weights, true, predicted)).all()
    assert np.isnan(weighted_r2(weights, true, predicted)).all() == (true is CONSTANT)


def test_a_resample_of_one_bag_alone_has_no_variance() -> None:
    weights = np.array([[0.0, 4.0, 0.0], [0.0, 1.0, 0.0]])
    true, predicted = np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 3.0])
    assert is_constant(weights, true).all()
    assert np.isnan(weighted_r2(weights, true, predicted)).all()
    np.testing.assert_array_equal(weighted_deviation(weights, predicted - true), [0.0, np.nan])
