"""Table of the models of survival: curves from their predictions, and reports' words."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from milcore.config import Target
from milcore.metrics.survival.breslow import BaselineHazard, breslow
from milcore.metrics.survival.discrete_hazard import SurvivalCurves
from milcore.metrics.survival.summary import RiskPredictions


class PredictedSurvival(Protocol):
    """Survival curves of patients."""

    def survival(self, times: Float[np.ndarray, " time"]) -> Float[np.ndarray, "patient time"]:
        """Survival of each patient at some times, in the unit of the outcome."""

    def expected_events(self, time: Float[np.ndarray, " patient"]) -> Float[np.ndarray, " patient"]:
        """Cumulative hazard of each patient until a time of its own."""


class BreslowCurves(NamedTuple):
    """Survival curves of a Cox model, with Breslow's baseline.

    Args:
        baseline: of the training patients; None where none of them has an event: nobody then is predicted to have it.
        risk: log hazard of each patient.
    """

    baseline: BaselineHazard | None
    risk: Float[np.ndarray, " patient"]

    def survival(self, times: Float[np.ndarray, " time"]) -> Float[np.ndarray, "patient time"]:
        """As ``PredictedSurvival``; 1 without a baseline."""
        if self.baseline is None:
            return np.ones((len(self.risk), len(times)))
        return self.baseline.survival(self.risk, times)

    def expected_events(self, time: Float[np.ndarray, " patient"]) -> Float[np.ndarray, " patient"]:
        """As ``PredictedSurvival``; NaN without a baseline."""
        if self.baseline is None:
            return np.full(len(self.risk), math.nan)
        return self.baseline.expected_events(self.risk, time)


class SurvivalModel(NamedTuple):
    """Row of a target in the table of models of survival.

    Args:
        curves: of patients, from the values of their bags, the training patients and the cut points.
        risk: meaning of the risk, for a person.
        estimated: of the training patients, for a person.
        survival: origin of predicted survival, for a person.
        limit: assumption of the model, for a person.
    """

    curves: Callable[
        [Float[np.ndarray, "patient value"], RiskPredictions, Float[np.ndarray, " time"]], PredictedSurvival
    ]
    risk: str
    estimated: str
    survival: str
    limit: str


def _breslow_curves(
    values: Float[np.ndarray, "patient value"], training: RiskPredictions, _: Float[np.ndarray, " time"]
) -> PredictedSurvival:
    baseline = breslow(training.outcome, training.risk) if training.outcome.events else None
    return BreslowCurves(baseline, values[:, 0])


def _hazard_curves(
    values: Float[np.ndarray, "patient value"], _: RiskPredictions, cut_points: Float[np.ndarray, " time"]
) -> PredictedSurvival:
    return SurvivalCurves(cut_points, values[:, 1:])


SURVIVAL_MODELS: dict[Target, SurvivalModel] = {
    "survival_cox": SurvivalModel(
        _breslow_curves,
        risk="the log hazard ratio relative to the mean of the training patients (Cox's proportional hazards)",
        estimated="weights of censoring, baseline hazard and the cut of the risk groups",
        survival="predicted survival adds the baseline hazard of the training patients",
        limit="hazards are taken as proportional over time",
    ),
    "survival_hazard": SurvivalModel(
        _hazard_curves,
        risk="minus the expected number of intervals of time survived (discrete-time hazards)",
        estimated="weights of censoring and the cut of the risk groups",
        survival="predicted survival is the model's own, with a constant hazard within an interval",
        limit="survival is predicted until the last cut point, and stays as it is there",
    ),
}


def survival_columns(cut_points: Sequence[float]) -> tuple[str, ...]:
    """Columns of survival at cut points, such as ``survival_at_365``.

    Times have six digits, or as many as tell them apart.
    """
    texts = [f"{time:g}" for time in cut_points]
    if len(set(texts)) < len(texts):
        texts = [repr(float(time)) for time in cut_points]
    return tuple(f"survival_at_{text}" for text in texts)
