"""Survival data that leave a figure undefined end in one line that says what to do."""

import math

import numpy as np
import pytest

from milcore.errors import InputError
from milcore.metrics.survival.breslow import breslow
from milcore.metrics.survival.brier_score import brier_score, integrated_brier_score
from milcore.metrics.survival.concordance import harrell_c, uno_c
from milcore.metrics.survival.cox import cox_regression, hazard_ratio
from milcore.metrics.survival.dynamic_auc import dynamic_auc
from milcore.metrics.survival.kaplan_meier import kaplan_meier
from milcore.metrics.survival.log_rank import log_rank
from milcore.metrics.survival.outcome import Outcome


def outcome(time: np.ndarray, event: list[int] | np.ndarray) -> Outcome:
    return Outcome.of(time, np.array(event))


TIME = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
RISK = np.array([3.0, 1.0, 2.0, 0.0, 5.0, 4.0])
SOME = outcome(TIME, [1, 0, 1, 1, 0, 1])
CENSORED = outcome(TIME, [0] * 6)
# all censored at 4 and later
ENDED = outcome(np.array([1.0, 2.0, 4.0, 4.0]), [1, 1, 0, 0])
SURVIVAL = np.full((6, 2), 0.5)
BINARY = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda: outcome(np.array([1.0, -2.0]), [1, 0]), "got -2; allowed: 0 or more"),
        (lambda: outcome(np.array([1.0, math.nan]), [1, 0]), "got nan"),
        (lambda: outcome(np.array([1.0, 2.0]), [1, 2]), "got 2; allowed: 0 and 1"),
        (lambda: outcome(np.array([1.0, 2.0]), [1]), "got 2 and 1"),
        (lambda: harrell_c(CENSORED, RISK), "a pair of patients whose order of events is known, got none"),
        (lambda: harrell_c(outcome(np.ones(6), [1] * 6), RISK), "a pair of patients"),
        (lambda: harrell_c(SOME, RISK[:4]), "one of each of 6 patients, got 4"),
        (lambda: harrell_c(SOME, np.where(RISK > 4, math.nan, RISK)), "finite numbers, got nan"),
        (lambda: uno_c(CENSORED, RISK, SOME), "a pair of patients"),
        (lambda: uno_c(SOME, RISK, SOME, tau=0.5), "a pair of patients"),
        (lambda: uno_c(SOME, RISK, outcome(TIME[:3], [1, 1, 1])), "got 6; allowed: up to 3"),
        (lambda: uno_c(SOME, RISK, ENDED, tau=5.0), "all training patients are censored, got 4; allowed: below 4"),
        (lambda: dynamic_auc(SOME, RISK, SOME, np.array([2.0, 6.0])), "got 6; allowed: 1 to below 6"),
        (lambda: dynamic_auc(SOME, RISK, SOME, np.array([3.0, 2.0])), "ascending times, got [3.0, 2.0]"),
        (lambda: dynamic_auc(SOME, RISK, SOME, np.zeros(0)), "ascending times, got []"),
        (lambda: dynamic_auc(CENSORED, RISK, SOME, np.array([3.0])), "got none of one at 3"),
        (lambda: brier_score(SOME, SURVIVAL, ENDED, np.array([2.0, 4.0])), "all training patients are censored, got 4"),
        (lambda: brier_score(SOME, SURVIVAL, ENDED, np.array([2.0, 5.0])), "got 5; allowed: up to 4"),
        (lambda: integrated_brier_score(SOME, SURVIVAL[:, :1], SOME, np.array([2.0])), "at least two to integrate"),
        (lambda: kaplan_meier(SOME.of_patients(TIME < 0)), "at least one patient, got none"),
        (lambda: log_rank(SOME, np.zeros(6, np.int64)), "two groups and an event, got 1 and 4"),
        (lambda: log_rank(CENSORED, BINARY.astype(np.int64)), "two groups and an event, got 2 and 0"),
        (lambda: log_rank(outcome(TIME, [0, 0, 0, 0, 0, 1]), (TIME < 3).astype(np.int64)), "each group at risk"),
        (lambda: breslow(CENSORED, RISK), "expected events, got none"),
        (lambda: cox_regression(CENSORED, BINARY[:, None]), "expected events, got none"),
        (lambda: cox_regression(SOME, np.column_stack([BINARY, TIME * 0]), ("sex", "age")), "got age; leave it out"),
        (lambda: cox_regression(SOME, np.column_stack([RISK, BINARY, 2 * RISK + BINARY])), "combination of others"),
        (lambda: cox_regression(SOME, -TIME[:, None], ("stage",)), "grows with stage without bound"),
        (lambda: cox_regression(SOME, (TIME > 6)[:, None].astype(float), ("stage",)), "got stage; leave it out"),
        (lambda: cox_regression(outcome(TIME, [0, 0, 0, 0, 1, 1]), (TIME < 3)[:, None] * 1.0, ("a",)), "got a"),
        (lambda: hazard_ratio(SOME, (TIME == 2) | (TIME == 5)), "got 0 in the high one and 4 in the other"),
        (lambda: hazard_ratio(Outcome.of(TIME, TIME > 0), TIME < 4), "without bound"),
    ],
)
def test_what_cannot_be_computed_is_one_line(compute, words):
    with pytest.raises(InputError) as error:
        compute()
    assert words in error.value.line
    assert "\n" not in str(error.value)


def test_kaplan_meier_by_hand():
    """Of six at 1, of four at 3, of three at 4, of one at 6: the event."""
    curve = kaplan_meier(SOME)
    np.testing.assert_allclose(curve.survival, np.cumprod([5 / 6, 1, 3 / 4, 2 / 3, 1, 0]))
    np.testing.assert_array_equal(curve.at_risk, [6, 5, 4, 3, 2, 1])
    np.testing.assert_array_equal(curve.events, [1, 0, 1, 1, 0, 1])
    np.testing.assert_allclose(curve.at(np.array([0.5, 3.0, 3.5, 9.0])), [1.0, 0.625, 0.625, 0.0])
    np.testing.assert_array_equal(curve.at_risk_at(np.array([0.0, 3.0, 3.5, 9.0])), [6, 4, 3, 0])


def test_expected_events_by_hand_and_in_sum():
    """Of equal risks the hazard is Nelson-Aalen's; in training as many events are expected as there are."""
    hazard = breslow(SOME, RISK * 0).expected_events(np.array([0.0, 0.0, math.log(2)]), np.array([0.5, 3.5, 9.0]))
    np.testing.assert_allclose(hazard, [0.0, 1 / 6 + 1 / 4, 2 * (1 / 6 + 1 / 4 + 1 / 3 + 1)])
    assert breslow(SOME, RISK).expected_events(RISK, TIME).sum() == pytest.approx(SOME.events)


def test_concordance_by_hand():
    """Pairs of patient 1 with five others (2, 3, 4 below), of 3 with three (4 below), of 4 with two (none below)."""
    assert harrell_c(SOME, RISK) == pytest.approx(4 / 10)


def test_hazard_ratio_is_that_of_the_model_with_one_covariate():
    high = BINARY == 1
    model = cox_regression(SOME, BINARY[:, None])
    ratio = hazard_ratio(SOME, high)
    assert math.log(ratio.value) == pytest.approx(float(model.coefficients[0]))
    assert math.log(ratio.high / ratio.low) == pytest.approx(2 * 1.959964 * float(model.standard_errors[0]), rel=1e-6)


def test_coefficients_are_those_of_the_scale_of_the_input():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 2))
    outcome = Outcome.of(random.exponential(np.exp(-x @ [0.5, -1.0])), random.random(200) < 0.8)
    base, moved = cox_regression(outcome, x), cox_regression(outcome, x * [1e6, 1e-6] + [1e9, 3.0])
    np.testing.assert_allclose(moved.coefficients * [1e6, 1e-6], base.coefficients, rtol=1e-5)
    np.testing.assert_allclose(moved.standard_errors * [1e6, 1e-6], base.standard_errors, rtol=1e-5)
    assert base.log_likelihood > base.null_log_likelihood


def grows_without_bound(outcome: Outcome, high: np.ndarray) -> bool:
    """By definition: at each event all who have it are of the highest group at risk, or all of the lowest."""
    times = np.unique(outcome.time[outcome.event])
    sets = [(high[outcome.event & (outcome.time == t)], high[outcome.time >= t]) for t in times]
    return any(all((events == end(at_risk)).all() for events, at_risk in sets) for end in (np.max, np.min))


def test_a_hazard_ratio_is_refused_just_where_none_is_best():
    """Against the definition, on small groups of which many are separable."""
    random, bounded = np.random.default_rng(5), 0
    for _ in range(400):
        count = int(random.integers(5, 16))
        outcome = Outcome.of(random.integers(1, 80, count), random.random(count) < 0.6)
        high = random.random(count) < 0.5
        if random.random() < 0.5:
            high = outcome.time < np.median(outcome.time)
        if not outcome.event[high].any() or not outcome.event[~high].any():
            continue
        if grows_without_bound(outcome, high):
            with pytest.raises(InputError, match=r"without bound|differ among"):
                hazard_ratio(outcome, high)
        else:
            bounded += 1
            assert hazard_ratio(outcome, high).high < 1e6
    assert bounded > 100


def test_groups_whose_last_event_stands_alone_have_no_hazard_ratio():
    time = np.array([4, 77, 65, 16, 37, 55, 14, 21, 40, 50, 56, 7, 31])
    event = np.array([0, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1])
    high = np.array([1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1]) == 1
    with pytest.raises(InputError, match="without bound"):
        hazard_ratio(outcome(time, event), high)
