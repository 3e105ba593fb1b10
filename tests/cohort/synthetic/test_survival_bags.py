"""Synthetic bags with survival times: they hold what their truths say."""

import math

import numpy as np
import pytest

from milcore.cohort.synthetic.survival_bags import APART, SurvivalPlan, survival_bags
from milcore.errors import InputError
from milcore.metrics.survival.cox import cox_regression
from milcore.metrics.survival.outcome import Outcome


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


def test_planted_instances_lie_apart_and_tell_the_risk():
    cohort = survival_bags(SurvivalPlan(patients=300, seed=3))
    counts = [planted.sum() for planted in cohort.planted]
    assert set(counts) == {1, 2, 3}
    grade = [bag[planted, 1].mean() for bag, planted in zip(cohort.features, cohort.planted, strict=True)]
    assert np.corrcoef(grade, cohort.risk)[0, 1] > 0.85
    inside, outside = (
        np.mean([bag[mask == part, 0].mean() for bag, mask in zip(cohort.features, cohort.planted, strict=True)])
        for part in (True, False)
    )
    assert inside - outside == pytest.approx(APART, abs=0.2)


def test_a_seed_repeats_a_cohort_and_another_makes_another():
    first, again, other = (survival_bags(SurvivalPlan(patients=20, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.features[7], again.features[7])
    np.testing.assert_array_equal(first.time, again.time)
    assert not np.array_equal(first.time, other.time)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patients": 1}, "patients: expected a cohort's setting, got 1; allowed: 2 or more"),
        ({"planted": (1, 40)}, "allowed: at most the fewest instances"),
        ({"censored": 1.0}, "allowed: 0 to below 1"),
        ({"shape": 0.0}, "allowed: above 0"),
    ],
)
def test_settings_out_of_range_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        survival_bags(SurvivalPlan()._replace(**change))
