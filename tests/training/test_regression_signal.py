"""Numbers learned from synthetic bags: attention finds what sets them, and nothing where there is nothing."""

import numpy as np
import pytest

from milcore.config import TrainConfig
from milcore.metrics.regression.agreement import r2
from milcore.metrics.regression.summary import ValuePredictions, regression_metrics
from milcore.mil.bags.bags import Bags
from milcore.mil.inference import predict_bags
from milcore.training.fit import fit
from tests.regression_bags import NOISE, RegressionBags, regression_bags

# checks of annotations would take nine tenths of the time of training
pytestmark = pytest.mark.usefixtures("without_type_checks")

# train to 3/8 of the patients, val to a half, test the rest
SHARES = (0.375, 0.5)
SMALL = TrainConfig(target="regression", target_column="value", hidden=16, learning_rate=0.01)
# mean pooling has no attention network
OF_POOLING = {"gated_attention": {"attention_hidden": 8}, "mean": {}}


def learned(cohort: RegressionBags, pooling: str, **settings: object) -> ValuePredictions:
    """Predictions of the test patients by a model that is trained on the first of all."""
    count = len(cohort.value)
    parts = np.searchsorted(np.array(SHARES) * count, np.arange(count), side="right")
    splits = [("train", "val", "test")[part] for part in parts]
    bags = Bags.from_arrays(list(cohort.features), values=cohort.value, splits=splits)
    test = bags.split("test")
    predictions = predict_bags(fit(bags, config=SMALL, pooling=pooling, **OF_POOLING[pooling], **settings), bags, test)
    predicted = np.array([predictions[index].probability[0] for index in test])
    return ValuePredictions(cohort.value[test], predicted, [f"p{index}" for index in test])


def scores(seed: int, patients: int, **settings: object) -> tuple[float, float]:
    """R2 of attention, and of mean pooling, on half of the patients, trained alike."""
    cohort = regression_bags(patients, seed)
    attention, mean = (learned(cohort, pooling, seed=seed, **settings) for pooling in ("gated_attention", "mean"))
    return r2(attention.true, attention.predicted), r2(mean.true, mean.predicted)


def test_the_best_r2_is_that_of_the_expected_value() -> None:
    cohort = regression_bags(4000, 0)
    assert r2(cohort.value, cohort.expected) == pytest.approx(1 / (1 + 3 * NOISE**2), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"patients": 600, "epochs": 25, "patience": 25}, id="few patients", marks=pytest.mark.long),
        pytest.param({"patients": 800, "epochs": 30, "patience": 30}, id="more patients", marks=pytest.mark.long),
    ],
)
def test_attention_beats_mean_pooling_and_the_training_mean_by_more_than_two_standard_errors(settings):
    """The R2 of the training mean is 0 or less."""
    of_seeds = np.array([scores(seed, **settings) for seed in range(3)])
    for gaps in (of_seeds[:, 0] - of_seeds[:, 1], of_seeds[:, 0]):
        assert gaps.mean() > 2 * gaps.std(ddof=1) / np.sqrt(len(gaps))
        assert gaps.mean() > 0.05


@pytest.mark.long
def test_intervals_cover_chance_in_cohorts_without_signal():
    """Of 200, 95 % intervals of both correlations hold 0 in 90 to 99 %."""

    def covers(seed: int) -> list[bool]:
        cohort = regression_bags(150, seed, slope=0.0, instances=(8, 12))
        overall = regression_metrics(learned(cohort, "gated_attention", epochs=5, seed=seed), seed).overall
        return [overall[name].low <= 0.0 <= overall[name].high for name in ("pearson", "spearman")]

    coverage = np.mean([covers(seed) for seed in range(200)], axis=0)
    assert ((coverage >= 0.90) & (coverage <= 0.99)).all(), coverage
