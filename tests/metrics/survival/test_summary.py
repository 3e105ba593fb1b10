"""All metrics of a split of survival, with intervals, by site, and null with a reason."""

import math

import numpy as np
import pytest

from milcore.metrics.survival.breslow import breslow
from milcore.metrics.survival.brier_score import integrated_brier_score
from milcore.metrics.survival.concordance import harrell_c, uno_c
from milcore.metrics.survival.cox import cox_regression
from milcore.metrics.survival.dynamic_auc import dynamic_auc
from milcore.metrics.survival.outcome import Outcome
from milcore.metrics.survival.summary import (
    NAMES,
    NO_PAIR,
    NO_TIME,
    RiskPredictions,
    measurement_times,
    survival_metrics,
)
from tests.metrics.survival.cohorts import halves


@pytest.fixture(scope="module")
def splits() -> tuple[RiskPredictions, RiskPredictions]:
    training, test = halves("gbsg2")
    model = cox_regression(training.outcome, training.covariates)
    sites = ["north" if k % 3 else "south" for k in range(len(test.covariates))]
    return (
        RiskPredictions(test.outcome, model.risk(test.covariates), [f"p{k}" for k in range(len(sites))], sites),
        RiskPredictions(training.outcome, model.risk(training.covariates), [f"q{k}" for k in range(len(training[1]))]),
    )


def test_values_are_those_of_each_metric_and_lie_in_their_intervals(splits):
    test, training = splits
    metrics = survival_metrics(test, training, seed=1)
    times = np.array(metrics.times)
    survival = breslow(training.outcome, training.risk).survival(test.risk, times)
    area = dynamic_auc(test.outcome, test.risk, training.outcome, times)
    values = metrics.overall
    assert tuple(values) == NAMES
    assert values["harrell_c"].value == pytest.approx(harrell_c(test.outcome, test.risk))
    assert values["uno_c"].value == pytest.approx(uno_c(test.outcome, test.risk, training.outcome, metrics.tau))
    assert values["mean_dynamic_auc"].value == pytest.approx(area.mean)
    assert [each.value for each in metrics.dynamic_auc] == pytest.approx(list(area.at_times))
    ibs = integrated_brier_score(test.outcome, survival, training.outcome, times)
    assert values["integrated_brier_score"].value == pytest.approx(ibs)
    assert ibs < values["kaplan_meier_integrated_brier_score"].value
    assert all(each.low < each.value < each.high for name, each in values.items() if name != "log_rank_p")
    assert len(times) == 9
    assert metrics.tau == times[-1]
    assert (metrics.patients, metrics.events) == (len(test.risk), int(test.outcome.event.sum()))


def test_groups_are_cut_at_the_median_of_training(splits):
    test, training = splits
    metrics = survival_metrics(test, training, seed=1)
    low, high = metrics.groups
    assert metrics.cut == np.median(training.risk)
    assert (low.patients, high.patients) == (
        int((test.risk <= metrics.cut).sum()),
        int((test.risk > metrics.cut).sum()),
    )
    assert low.curve.at(np.array([1000.0])) > high.curve.at(np.array([1000.0]))
    assert metrics.overall["hazard_ratio"].value > 1
    assert metrics.overall["log_rank_p"].value < 0.05
    assert sum(group.patients for group in metrics.calibration) == metrics.patients


def test_sites_are_measured_alone_and_a_seed_repeats_all(splits):
    test, training = splits
    metrics = survival_metrics(test, training, seed=1)
    assert list(metrics.of_sites) == ["north", "south"]
    south = metrics.of_sites["south"]
    assert south.overall["harrell_c"].value == pytest.approx(
        harrell_c(test.of_site("south").outcome, test.of_site("south").risk)
    )
    assert sum(site.patients for site in metrics.of_sites.values()) == metrics.patients
    assert repr(survival_metrics(test, training, seed=1).overall) == repr(metrics.overall)


@pytest.mark.parametrize("patients", [0, 1, 4])
def test_a_split_without_events_has_reasons_in_place_of_numbers(splits, patients):
    _, training = splits
    outcome = Outcome.of(np.arange(1.0, patients + 1) * 400, np.zeros(patients, bool))
    test = RiskPredictions(outcome, np.arange(float(patients)), [f"p{k}" for k in range(patients)])
    metrics = survival_metrics(test, training, seed=1)
    assert metrics.overall["harrell_c"].reason == NO_PAIR
    assert all(
        math.isnan(each.value) == (each.reason is not None)
        for each in (*metrics.overall.values(), *metrics.dynamic_auc, *metrics.brier_score)
    )
    assert math.isnan(metrics.overall["mean_dynamic_auc"].value)
    assert math.isnan(metrics.overall["hazard_ratio"].value)


def test_training_without_events_leaves_no_time():
    outcome = Outcome.of(np.arange(1.0, 9.0), np.zeros(8, bool))
    test = RiskPredictions(Outcome.of(np.arange(1.0, 9.0), np.ones(8, bool)), np.arange(8.0), list("abcdefgh"))
    metrics = survival_metrics(test, RiskPredictions(outcome, np.arange(8.0), list("ijklmnop")), seed=1)
    assert metrics.overall["integrated_brier_score"].reason == NO_TIME
    assert metrics.overall["harrell_c"].value == 0.0
    assert metrics.times == ()
    assert metrics.tau is None


def test_one_event_leaves_the_hazard_ratio_undefined():
    time = np.arange(1.0, 21.0)
    test = RiskPredictions(Outcome.of(time, time == 5), -time, [f"p{k}" for k in range(20)])
    training = RiskPredictions(Outcome.of(time, time % 2 == 0), -time, [f"q{k}" for k in range(20)])
    metrics = survival_metrics(test, training, seed=1)
    assert "events in both groups" in metrics.overall["hazard_ratio"].reason
    assert metrics.overall["harrell_c"].value == 1.0


def test_times_lie_between_the_first_event_and_the_end_of_the_follow_up_of_the_test_patients():
    time = np.arange(1.0, 101.0)
    training = Outcome.of(time, np.ones(100, bool))
    test = Outcome.of(np.array([2.0, 25.0, 40.0, 71.0]), np.array([0, 1, 0, 1]))
    np.testing.assert_array_equal(measurement_times(test, training), [30, 40, 50, 60, 70])


def test_a_site_of_late_follow_up_is_measured_at_the_times_it_has(splits):
    test, training = splits
    late = np.array([time > 800 for time in test.outcome.time])
    metrics = survival_metrics(test._replace(sites=["late" if each else "early" for each in late]), training, seed=1)
    site = metrics.of_sites["late"]
    assert 0 < len(site.times) < len(metrics.times)
    assert min(site.times) > 800
    assert set(site.times) < set(metrics.times)
    assert site.overall["mean_dynamic_auc"].reason is None
    assert site.overall["integrated_brier_score"].reason is None
