"""Discrete-time hazards: intervals of time, and survival curves with a constant hazard within each.

Axis words: patient, interval, time.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from milcore.errors import InputError
from milcore.metrics.survival.outcome import Outcome

# survival below it is that: its logarithm stays finite
SMALLEST_SURVIVAL = 1e-300


def cut_points(outcome: Outcome, intervals: int) -> Float[np.ndarray, " interval"]:
    """Ends of intervals of time that hold about as many events each.

    Quantiles ``1 / K, 2 / K, ..., 1`` of the event times, each itself the time of an event; the first interval begins
    at 0, each holds its end.

    Args:
        outcome: of the training patients.
        intervals: K, how many.

    Raises:
        InputError: the quantiles are not different times.
    """
    times = outcome.time[outcome.event]
    shares = np.arange(1, intervals + 1) / intervals
    ends: np.ndarray = np.quantile(times, shares, method="inverted_cdf") if len(times) else times
    if len(np.unique(ends)) < intervals:
        raise InputError(
            f"hazard_intervals: expected {intervals} intervals that end at different times of events, got "
            f"{len(np.unique(ends))} of {outcome.events} event(s) at {len(np.unique(times))} time(s) in training; "
            "allowed: 2 or more, fewer than these; set fewer, or train on more events"
        )
    return ends


class SurvivalCurves(NamedTuple):
    """Survival curves of patients, known at cut points.

    Between two cut points the hazard is constant, so that log survival is linear in time; it is 0 at time 0. After the
    last cut point survival stays as it is there, for nothing is known.

    Source: Kvamme, Borgan 2021, Lifetime Data Analysis 27:710-736, section 4 (constant hazard interpolation).

    Args:
        cut_points: ascending, above 0, in the unit of the outcome.
        at_cut_points: survival of each patient.
    """

    cut_points: Float[np.ndarray, " interval"]
    at_cut_points: Float[np.ndarray, "patient interval"]

    def survival(self, times: Float[np.ndarray, " time"]) -> Float[np.ndarray, "patient time"]:
        """Survival of each patient at some times.

        Args:
            times: in the unit of the cut points.
        """
        survival: np.ndarray = np.exp(self._log_survival @ interpolation(self.cut_points, times))
        return survival

    def expected_events(self, time: Float[np.ndarray, " patient"]) -> Float[np.ndarray, " patient"]:
        """Cumulative hazard of each patient until a time of its own.

        Args:
            time: in the unit of the cut points.
        """
        expected: np.ndarray = -(self._log_survival * interpolation(self.cut_points, time).T).sum(axis=1)
        return expected

    @property
    def _log_survival(self) -> Float[np.ndarray, "patient interval"]:
        log_survival: np.ndarray = np.log(np.maximum(self.at_cut_points, SMALLEST_SURVIVAL))
        return log_survival


def interpolation(
    ends: Float[np.ndarray, " interval"], times: Float[np.ndarray, " time"]
) -> Float[np.ndarray, "interval time"]:
    """Weight of log survival at each cut point in that at each time.

    Args:
        ends: the cut points, ascending, above 0.
        times: in the same unit.
    """
    knots = np.concatenate([[0.0], ends])
    return np.stack([np.interp(times, knots, hat) for hat in np.eye(len(knots))[1:]])
