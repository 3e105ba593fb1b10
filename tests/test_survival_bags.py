"""Synthetic bags with survival times: they hold what their truths say."""

import math

import numpy as np
import pytest

from milcore.metrics.survival.cox import cox_regression
from milcore.metrics.survival.outcome import Outcome
from tests.survival_bags import APART, SurvivalBags, SurvivalPlan, survival_bags


def test_the_true_risk_is_the_log_hazard():
    """Cox's coefficient of the true log hazard is 1, within three standard errors."""
    cohort = survival_bags(SurvivalPlan(patients=2000, instances=(3, 5), planted=(1, 1), seed=1))
    model = cox_regression(Outcome.of(cohort.time, cohort.event), cohort.risk[:, None])
    assert abs(model.coefficients[0] - 1) < 3 * model.standard_errors[0]


def test_times_are_weibull_without_signal_and_censoring():
    """Median ``scale log(2)^(1 / shape)``."""
    plan = SurvivalPlan(patients=4000, instances=(1, 1), planted=(0, 1), log_hazard=0.0, censored=0.0, seed=2)
    cohort = survival_bags(plan)
    assert cohort.event.all()
    assert not cohort.risk.any()
    assert np.median(cohort.time) == pytest.approx(1000 * math.log(2) ** (1 / 1.3), rel=0.05)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.8])
def test_the_share_of_censored_patients_is_that_of_the_plan(share):
    cohort = survival_bags(SurvivalPlan(patients=500, censored=share))
    assert np.mean(~cohort.event) == pytest.approx(share, abs=0.005)
    assert (cohort.time > 0).all()


def means(cohort: SurvivalBags, planted: bool, feature: int) -> np.ndarray:
    """Mean of a feature over the planted instances of each bag, or over its others."""
    bags = zip(cohort.features, cohort.planted, strict=True)
    return np.array([bag[mask == planted, feature].mean() for bag, mask in bags])


def test_the_grade_of_planted_instances_alone_tells_the_risk():
    cohort = survival_bags(SurvivalPlan(patients=2000, seed=3))
    assert {planted.sum() for planted in cohort.planted} == {3, 4, 5, 6}
    assert np.corrcoef(means(cohort, True, 1), cohort.risk)[0, 1] > 0.9
    # three standard errors of a correlation that is 0
    assert abs(np.corrcoef(means(cohort, False, 1), cohort.risk)[0, 1]) < 3 / math.sqrt(2000)


def test_planted_instances_lie_apart_in_their_bag_but_not_in_the_cohort():
    cohort = survival_bags(SurvivalPlan(patients=2000, seed=3))
    inside, outside = (means(cohort, planted, 0) for planted in (True, False))
    assert (inside > outside).all()
    assert np.mean(inside - outside) == pytest.approx(APART, abs=0.1)
    # two levels, uniform on -6 to 6, differ by more than 6 in one direction in an eighth of the pairs
    assert np.mean(outside[:, None] > inside) == pytest.approx(1 / 8, abs=0.02)


def test_a_seed_repeats_a_cohort_and_another_makes_another():
    first, again, other = (survival_bags(SurvivalPlan(patients=20, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.features[7], again.features[7])
    np.testing.assert_array_equal(first.time, again.time)
    assert not np.array_equal(first.time, other.time)
