"""Brier score of survival probabilities under censoring, and its integral over time.

Axis words: patient, time, resample.
"""

import numpy as np
from jaxtyping import Float

from milcore.errors import InputError
from milcore.metrics.resamples import ratio
from milcore.metrics.survival.dynamic_auc import check_times, event_weights
from milcore.metrics.survival.kaplan_meier import CensoringCurve
from milcore.metrics.survival.outcome import Outcome, check_scores


def brier_score(
    outcome: Outcome,
    survival: Float[np.ndarray, "patient time"],
    training: Outcome,
    times: Float[np.ndarray, " time"],
) -> Float[np.ndarray, " time"]:
    """Brier score BS(t) of survival probabilities at some times.

    ``BS(t) = mean_i [ S_i(t)^2 / G(t_i) ]`` of patients with the event by t, ``(1 - S_i(t))^2 / G(t)`` of those
    followed beyond t, and 0 of those censored before. 0 is perfect.

    Source: Graf, Schmoor, Sauerbrei, Schumacher 1999, Statistics in Medicine 18:2529-2545.

    Args:
        outcome: of the patients that are measured.
        survival: predicted probability that the event comes after each time.
        training: of the patients that G, of being followed, is estimated of.
        times: ascending, in the unit of the outcome, within its follow-up.

    Raises:
        InputError: times are not ascending or not within follow-up, or G is 0 or unknown at one.
    """
    whole = np.ones((1, len(outcome.time)))
    scores: np.ndarray = weighted_brier_score(whole, outcome, survival, training, times)[0]
    return scores


def integrated_brier_score(
    outcome: Outcome,
    survival: Float[np.ndarray, "patient time"],
    training: Outcome,
    times: Float[np.ndarray, " time"],
) -> float:
    """Integral of the Brier score over the times, by trapezia, over their span.

    Arguments and source are those of ``brier_score``.

    Raises:
        InputError: as ``brier_score``, or there is one time only.
    """
    return float(integral(brier_score(outcome, survival, training, times)[None], times)[0])


def integral(
    scores: Float[np.ndarray, "resample time"], times: Float[np.ndarray, " time"]
) -> Float[np.ndarray, " resample"]:
    """Mean over time of scores at some times, by the trapezoidal rule.

    Raises:
        InputError: there is one time only.
    """
    if len(times) < 2:
        raise InputError(f"times: expected at least two to integrate over, got {len(times)}; give more times")
    mean: np.ndarray = np.trapezoid(scores, times, axis=1) / (times[-1] - times[0])
    return mean


def weighted_brier_score(
    weights: Float[np.ndarray, "resample patient"],
    outcome: Outcome,
    survival: Float[np.ndarray, "patient time"],
    training: Outcome,
    times: Float[np.ndarray, " time"],
) -> Float[np.ndarray, "resample time"]:
    """Brier score at each time for every row of patient weights."""
    check_scores(outcome, survival, "survival")
    check_times(outcome, times)
    followed = CensoringCurve.of(training).positive_at(times)
    case = event_weights(outcome, training, float(times[-1]))[:, None] * (outcome.time[:, None] <= times)
    control = (outcome.time[:, None] > times) / followed
    loss = survival**2 * case + (1.0 - survival) ** 2 * control
    return ratio(weights @ loss, weights.sum(axis=1, keepdims=True))
