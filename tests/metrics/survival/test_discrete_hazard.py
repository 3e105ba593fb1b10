"""Intervals of time by hand, and survival curves between their ends."""

import numpy as np
import pytest

from milcore.errors import InputError
from milcore.metrics.survival.discrete_hazard import SurvivalCurves, cut_points
from milcore.metrics.survival.outcome import Outcome

# of two patients at times 2 and 6; the second dies surely in the second interval
CURVES = SurvivalCurves(np.array([2.0, 6.0]), np.array([[0.64, 0.16], [0.5, 0.0]]))


def test_intervals_hold_as_many_events_each_and_no_censored_patient_counts():
    """Events at 1 to 8, two an interval; those who are censored at 100 and 0.5 end none."""
    time = np.array([8.0, 3, 1, 2, 4, 7, 6, 5, 100, 0.5])
    outcome = Outcome.of(time, np.array([1] * 8 + [0, 0]))
    assert cut_points(outcome, 4).tolist() == [2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize(
    ("times", "events", "got"),
    [
        ([1, 2, 3, 9], [1, 1, 1, 0], "got 3 of 3 event(s) at 3 time(s) in training"),
        ([1, 1, 1, 1, 2, 3, 4], [1] * 7, "got 3 of 7 event(s) at 4 time(s) in training"),
        ([1, 2], [0, 0], "got 0 of 0 event(s) at 0 time(s) in training"),
    ],
)
def test_events_of_too_few_times_are_one_line(times, events, got):
    with pytest.raises(InputError) as raised:
        cut_points(Outcome.of(np.array(times), np.array(events)), 4)
    assert raised.value.line.startswith("hazard_intervals: expected 4 intervals that end at different times of events")
    assert got in raised.value.line
    assert raised.value.exit_code == 2


def test_survival_between_cut_points_has_a_constant_hazard():
    """Half of an interval multiplies survival by the square root of its factor: 0.8 at 1, 0.64 * 0.5 at 4."""
    survival = CURVES.survival(np.array([0.0, 1.0, 2.0, 4.0, 6.0, 99.0]))
    np.testing.assert_allclose(survival[0], [1.0, 0.8, 0.64, 0.32, 0.16, 0.16], rtol=1e-12)
    np.testing.assert_allclose(survival[1, [0, 2, 4, 5]], [1.0, 0.5, 0.0, 0.0], atol=1e-200)
    assert np.isfinite(survival).all()


def test_expected_events_are_the_cumulative_hazard_of_each_patient():
    np.testing.assert_allclose(CURVES.expected_events(np.array([4.0, 1.0])), -np.log([0.32, np.sqrt(0.5)]), rtol=1e-12)
