"""Survival learned from synthetic bags: attention finds what sets the hazard, and nothing where there is nothing."""

import numpy as np
import pytest

from milcore.config import TrainConfig
from milcore.metrics.survival.brier_score import integrated_brier_score
from milcore.metrics.survival.concordance import harrell_c
from milcore.metrics.survival.discrete_hazard import SurvivalCurves
from milcore.metrics.survival.kaplan_meier import kaplan_meier
from milcore.metrics.survival.outcome import Outcome
from milcore.metrics.survival.summary import RiskPredictions, measurement_times, survival_metrics
from milcore.mil.bags.bags import Bags
from milcore.mil.inference import predict_bags
from milcore.training.fit import fit
from tests.survival_bags import SurvivalBags, SurvivalPlan, survival_bags

# checks of annotations would take nine tenths of the time of training
pytestmark = pytest.mark.usefixtures("without_type_checks")

# train to 3/8 of the patients, val to a half, test the rest
SHARES = (0.375, 0.5)
SMALL = TrainConfig(target="survival_cox", time="time", event="event", hidden=16, learning_rate=0.01)
# mean pooling has no attention network
OF_POOLING = {"gated_attention": {"attention_hidden": 8}, "mean": {}}


def parts_of(cohort: SurvivalBags) -> np.ndarray:
    """Part of each patient: 0 train, 1 val, 2 test."""
    count = len(cohort.risk)
    return np.searchsorted(np.array(SHARES) * count, np.arange(count), side="right")


def learned_risk(cohort: SurvivalBags, **settings: object) -> np.ndarray:
    """Risk of each patient by a model that is trained on the first of them."""
    return learned_values(cohort, **settings)[1][:, 0]


def learned_values(cohort: SurvivalBags, pooling: str, **settings: object) -> tuple[np.ndarray, np.ndarray]:
    """Cut points of a model that is trained on the first patients, and what it predicts of each."""
    splits = [("train", "val", "test")[part] for part in parts_of(cohort)]
    events = cohort.event.astype(np.int64)
    bags = Bags.from_arrays(list(cohort.features), splits=splits, times=cohort.time, events=events)
    model = fit(bags, config=SMALL, pooling=pooling, **OF_POOLING[pooling], **settings)
    predictions = predict_bags(model, bags)
    return model.constants.numpy(), np.array([predictions[index].probability for index in range(len(splits))])


def of_part(cohort: SurvivalBags, risk: np.ndarray, part: int) -> RiskPredictions:
    members = np.flatnonzero(parts_of(cohort) == part)
    outcome = Outcome.of(cohort.time, cohort.event).of_patients(members)
    return RiskPredictions(outcome, risk[members], [f"p{index}" for index in members])


def gap(seed: int, patients: int, **settings: object) -> float:
    """Harrell's C of attention less that of mean pooling on half of the patients, trained alike."""
    cohort = survival_bags(SurvivalPlan(patients=patients, seed=seed))
    attention, mean = (
        of_part(cohort, learned_risk(cohort, pooling=pooling, seed=seed, **settings), 2)
        for pooling in ("gated_attention", "mean")
    )
    return harrell_c(attention.outcome, attention.risk) - harrell_c(mean.outcome, mean.risk)


def hazard_gaps(seed: int, patients: int, **settings: object) -> tuple[float, float]:
    """Harrell's C over that of mean pooling, and the integrated Brier score below that of one curve for everybody."""
    cohort = survival_bags(SurvivalPlan(patients=patients, seed=seed))
    (ends, values), (_, mean) = (
        learned_values(cohort, pooling=pooling, target="survival_hazard", seed=seed, **settings)
        for pooling in ("gated_attention", "mean")
    )
    training, test, test_mean = (
        of_part(cohort, *each) for each in ((values[:, 0], 0), (values[:, 0], 2), (mean[:, 0], 2))
    )
    times = measurement_times(test.outcome, training.outcome)
    of_test = SurvivalCurves(ends, values[parts_of(cohort) == 2, 1:]).survival(times)
    of_all = np.tile(kaplan_meier(training.outcome).at(times), (len(of_test), 1))
    own, null = (integrated_brier_score(test.outcome, each, training.outcome, times) for each in (of_test, of_all))
    return harrell_c(test.outcome, test.risk) - harrell_c(test.outcome, test_mean.risk), null - own


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"patients": 600, "epochs": 25, "patience": 25, "learning_rate": 0.02},
            id="few patients",
            marks=pytest.mark.long,
        ),
        pytest.param({"patients": 800, "epochs": 30, "patience": 30}, id="more patients", marks=pytest.mark.long),
    ],
)
def test_hazards_beat_mean_pooling_and_one_curve_for_everybody_by_more_than_two_standard_errors(settings):
    gaps = np.array([hazard_gaps(seed, **settings) for seed in range(3)])
    assert (gaps.mean(axis=0) > 2 * gaps.std(axis=0, ddof=1) / np.sqrt(len(gaps))).all()
    assert gaps.mean(axis=0)[0] > 0.05


@pytest.mark.slow
def test_attention_beats_mean_pooling_in_one_cohort():
    assert gap(0, patients=600, epochs=25, patience=25) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"patients": 600, "epochs": 25, "patience": 25}, id="the default batch", marks=pytest.mark.long),
        pytest.param({"patients": 800, "epochs": 30, "patience": 30}, id="more patients", marks=pytest.mark.long),
        # a step an epoch, so more epochs to converge
        pytest.param(
            {"patients": 800, "batch_size": "all", "epochs": 500, "patience": 500}, id="all", marks=pytest.mark.long
        ),
    ],
)
def test_attention_beats_mean_pooling_by_more_than_two_standard_errors(settings):
    gaps = np.array([gap(seed, **settings) for seed in range(3)])
    assert gaps.mean() > 2 * gaps.std(ddof=1) / np.sqrt(len(gaps))
    assert gaps.mean() > 0.05


@pytest.mark.long
def test_intervals_cover_chance_in_cohorts_without_signal():
    """Of 200, 95 % intervals hold 0.5 in 90 to 99 %."""

    def covers(seed: int) -> bool:
        plan = SurvivalPlan(patients=150, instances=(5, 10), planted=(1, 3), log_hazard=0.0, seed=seed)
        cohort = survival_bags(plan)
        risk = learned_risk(cohort, pooling="gated_attention", epochs=5, seed=seed)
        interval = survival_metrics(of_part(cohort, risk, 2), of_part(cohort, risk, 0), seed).overall["harrell_c"]
        return bool(interval.low <= 0.5 <= interval.high)

    coverage = np.mean([covers(seed) for seed in range(200)])
    assert 0.90 <= coverage <= 0.99, coverage
