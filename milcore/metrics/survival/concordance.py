"""Concordance of risk with the order of events: Harrell's and Uno's C.

Axis words: patient, event (patients with the event), resample.
"""

import math

import numpy as np
from jaxtyping import Float, Int

from milcore.errors import InputError
from milcore.metrics.resamples import MOST_VALUES, ratio
from milcore.metrics.survival.kaplan_meier import CensoringCurve
from milcore.metrics.survival.outcome import Outcome, check_scores

# risks no further apart than this are equal
TIE = 1e-8


def harrell_c(outcome: Outcome, risk: Float[np.ndarray, " patient"]) -> float:
    """Harrell's C: share of comparable pairs whose risks are in the right order.

    A pair is comparable where the one with the event has the shorter time, or the same time as a patient who is
    censored then. It is concordant where the one with the event has the higher risk, and half so where the risks are
    equal (within 1e-8).

    Source: Harrell, Lee, Mark 1996, Statistics in Medicine 15:361-387.

    Args:
        outcome: times of events and censoring.
        risk: higher for an earlier event, on any scale.

    Raises:
        InputError: no pair is comparable, or a risk is not finite.
    """
    return _point(weighted_harrell_c(np.ones((1, len(risk))), outcome, risk))


def uno_c(outcome: Outcome, risk: Float[np.ndarray, " patient"], training: Outcome, tau: float | None = None) -> float:
    """Uno's C: concordance up to a time, freed of how patients are censored.

    Harrell's C of pairs whose event comes before tau, each pair with the weight ``1 / G(t)^2`` at its event's time t;
    G is the Kaplan-Meier estimate of being followed beyond t.

    Source: Uno, Cai, Pencina, D'Agostino, Wei 2011, Statistics in Medicine 30:1105-1117, equation 6.

    Args:
        outcome: of the patients that are measured.
        risk: of the same patients; higher for an earlier event.
        training: of the patients that G is estimated of.
        tau: events at this time or later count for nothing, unit of the times; None counts all.

    Raises:
        InputError: no pair is comparable before tau, or G is 0 or unknown at an event.
    """
    return _point(weighted_uno_c(np.ones((1, len(risk))), outcome, risk, training, tau))


def weighted_harrell_c(
    weights: Float[np.ndarray, "resample patient"], outcome: Outcome, risk: Float[np.ndarray, " patient"]
) -> Float[np.ndarray, " resample"]:
    """Harrell's C for every row of patient weights, NaN without a comparable pair."""
    events = np.flatnonzero(outcome.event)
    return _concordance(weights, outcome, risk, events, np.ones(len(events)))


def weighted_uno_c(
    weights: Float[np.ndarray, "resample patient"],
    outcome: Outcome,
    risk: Float[np.ndarray, " patient"],
    training: Outcome,
    tau: float | None = None,
) -> Float[np.ndarray, " resample"]:
    """Uno's C for every row of patient weights, NaN without a comparable pair."""
    events = np.flatnonzero(outcome.event & (outcome.time < (math.inf if tau is None else tau)))
    followed = CensoringCurve.of(training).positive_at(outcome.time[events])
    return _concordance(weights, outcome, risk, events, followed**-2.0)


def _concordance(
    weights: Float[np.ndarray, "resample patient"],
    outcome: Outcome,
    risk: Float[np.ndarray, " patient"],
    events: Int[np.ndarray, " event"],
    of_event: Float[np.ndarray, " event"],
) -> Float[np.ndarray, " resample"]:
    """Quadratic forms of the weights over blocks of pairs, so that memory stays small."""
    check_scores(outcome, risk)
    concordant, comparable = np.zeros(len(weights)), np.zeros(len(weights))
    step = max(1, MOST_VALUES // max(1, len(risk)))
    for start in range(0, len(events), step):
        rows = events[start : start + step]
        later = _later(outcome, rows)
        gap = risk[rows, None] - risk
        order = later * np.where(gap > TIE, 1.0, np.where(gap >= -TIE, 0.5, 0.0))
        own = weights[:, rows] * of_event[start : start + step]
        concordant += np.einsum("rk,rk->r", own, weights @ order.T)
        comparable += np.einsum("rk,rk->r", own, weights @ later.T)
    return ratio(concordant, comparable)


def _later(outcome: Outcome, rows: Int[np.ndarray, " event"]) -> Float[np.ndarray, "event patient"]:
    """1 where a patient outlasted the time of the row's event, else 0."""
    own = outcome.time[rows, None]
    later: np.ndarray = (outcome.time > own) | ((outcome.time == own) & ~outcome.event)
    return later.astype(np.float64)


def _point(values: Float[np.ndarray, " resample"]) -> float:
    value = float(values[0])
    if math.isnan(value):
        raise InputError(
            "outcome: expected a pair of patients whose order of events is known, got none; "
            "choose patients of whom one has the event while another is followed"
        )
    return value
