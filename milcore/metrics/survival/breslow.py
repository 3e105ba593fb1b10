"""Breslow's baseline hazard of a Cox model, and survival predicted with it.

Axis words: patient, time.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from milcore.errors import InputError
from milcore.metrics.survival.outcome import Outcome, TimeCounts, check_scores, step_values


class BaselineHazard(NamedTuple):
    """Cumulative hazard of a patient whose risk is the reference.

    Args:
        time: unique times of events and censoring, ascending, in the unit of the outcome.
        cumulative_hazard: at each of them.
        reference: risk it belongs to; that of risk r is larger by ``exp(r - reference)``.
    """

    time: Float[np.ndarray, " time"]
    cumulative_hazard: Float[np.ndarray, " time"]
    reference: float

    def survival(
        self, risk: Float[np.ndarray, " patient"], times: Float[np.ndarray, " time"]
    ) -> Float[np.ndarray, "patient time"]:
        """Predicted survival ``exp(-H0(t) exp(risk))`` of each patient.

        Args:
            risk: log hazard, on the scale of the risk that the hazard was estimated with.
            times: in the unit of the outcome; after the last time the hazard stays as it is there.
        """
        survival: np.ndarray = np.exp(-self._hazard(times) * _ratio(risk, self.reference)[:, None])
        return survival

    def expected_events(
        self, risk: Float[np.ndarray, " patient"], time: Float[np.ndarray, " patient"]
    ) -> Float[np.ndarray, " patient"]:
        """Cumulative hazard ``H0(t) exp(risk)`` of each patient until a time of its own.

        Args:
            risk: as of ``survival``.
            time: as the times of ``survival``.
        """
        expected: np.ndarray = self._hazard(time) * _ratio(risk, self.reference)
        return expected

    def _hazard(self, times: np.ndarray) -> np.ndarray:
        return step_values(self.time, self.cumulative_hazard, times, before=0.0)


def breslow(outcome: Outcome, risk: Float[np.ndarray, " patient"]) -> BaselineHazard:
    """Breslow's estimate of the baseline's cumulative hazard, of training patients.

    ``H0(t) = sum_(u <= t) d(u) / sum_(i at risk at u) exp(risk_i)``; here risk less its mean, which is the reference.

    Source: Breslow 1972, discussion of Cox 1972, Journal of the Royal Statistical Society B 34:216-217.

    Args:
        outcome: of the training patients.
        risk: their log hazards, up to a constant.

    Raises:
        InputError: there is no event, or a risk is not finite.
    """
    check_scores(outcome, risk)
    if not outcome.events:
        raise InputError("baseline hazard: expected events, got none; choose patients some of whom have the event")
    reference = float(risk.mean())
    counts = TimeCounts.of(outcome, np.stack([_ratio(risk, reference), np.ones(len(risk))]))
    return BaselineHazard(counts.time, (counts.events[1] / counts.at_risk[0]).cumsum(), reference)


def _ratio(risk: Float[np.ndarray, " patient"], reference: float) -> Float[np.ndarray, " patient"]:
    """Hazard over that of the reference; beyond exp(700) survival is 0 all the same."""
    ratio: np.ndarray = np.exp(np.minimum(risk - reference, 700.0))
    return ratio
