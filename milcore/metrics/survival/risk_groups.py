"""Patients in groups of risk: survival of each, their difference, and calibration.

Axis words: patient, time.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from milcore.metrics.survival.kaplan_meier import KaplanMeier, kaplan_meier
from milcore.metrics.survival.outcome import Outcome, step_values

CALIBRATION_GROUPS = 5


class RiskGroup(NamedTuple):
    """Patients on one side of the cut, and their survival.

    Args:
        name: ``low`` or ``high``, of the risk.
        patients: number of them.
        events: number with the event.
        curve: Kaplan-Meier estimate; None without a patient.
    """

    name: str
    patients: int
    events: int
    curve: KaplanMeier | None


def risk_groups(outcome: Outcome, risk: Float[np.ndarray, " patient"], cut: float) -> tuple[RiskGroup, RiskGroup]:
    """Groups of low and high risk, each with its Kaplan-Meier estimate.

    Args:
        outcome: of the patients that are measured.
        risk: of the same patients.
        cut: highest risk called low, from other patients: the median of those of training.
    """
    high = risk > cut
    low_group, high_group = (
        _group(name, outcome.of_patients(members)) for name, members in (("low", ~high), ("high", high))
    )
    return low_group, high_group


def _group(name: str, outcome: Outcome) -> RiskGroup:
    count = len(outcome.time)
    return RiskGroup(name, count, outcome.events, kaplan_meier(outcome) if count else None)


class CalibrationGroup(NamedTuple):
    """Patients of like predicted survival at one time, and how many survived.

    Args:
        patients: number of them.
        predicted: mean predicted survival, 0 to 1.
        survival: Kaplan-Meier estimate at the time.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    patients: int
    predicted: float
    survival: float
    low: float
    high: float


def calibration_groups(
    outcome: Outcome, survival: Float[np.ndarray, " patient"], time: float
) -> tuple[CalibrationGroup, ...]:
    """Predicted and Kaplan-Meier survival in up to five groups of equal size.

    Args:
        outcome: of the patients that are measured.
        survival: predicted for each of them at the time.
        time: in the unit of the outcome.
    """
    order = np.argsort(survival, kind="stable")
    parts = [part for part in np.array_split(order, CALIBRATION_GROUPS) if len(part)]
    return tuple(_calibration(outcome.of_patients(part), survival[part], time) for part in parts)


def _calibration(outcome: Outcome, survival: Float[np.ndarray, " patient"], time: float) -> CalibrationGroup:
    curve = kaplan_meier(outcome)
    lines = np.stack([curve.survival, curve.low, curve.high])
    observed, low, high = step_values(curve.time, lines, np.array([time]), before=1.0)[:, 0].tolist()
    return CalibrationGroup(len(survival), float(survival.mean()), observed, low, high)
