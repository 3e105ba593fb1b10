"""Cumulative/dynamic AUC: events by a time against patients followed beyond it.

Axis words: patient, time, resample, group (patients of one risk).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from milcore.errors import InputError
from milcore.metrics.resamples import ratio, row_blocks
from milcore.metrics.survival.concordance import TIE
from milcore.metrics.survival.kaplan_meier import CensoringCurve
from milcore.metrics.survival.outcome import Outcome, check_scores, survival_at


class DynamicAuc(NamedTuple):
    """AUC(t) at each time, and its mean over the times."""

    at_times: Float[np.ndarray, " time"]
    mean: float


def dynamic_auc(outcome: Outcome, risk: np.ndarray, training: Outcome, times: Float[np.ndarray, " time"]) -> DynamicAuc:
    """Cumulative/dynamic AUC at some times, and its mean.

    ``AUC(t) = sum_i sum_j w_i o_ij / (sum_i w_i sum_j 1)`` over cases i with the event by t and controls j followed
    beyond t; ``w_i = 1 / G(t_i)``, and o is 1 where the case has the higher risk, a half where risks are equal (within
    1e-8). The mean weighs AUC(t_k) by ``S(t_(k-1)) - S(t_k)``, S being the Kaplan-Meier estimate of these patients and
    1 before the first time.

    Sources: Uno, Cai, Tian, Wei 2007, Journal of the American Statistical Association 102:527-537; Hung, Chiang 2010,
    Canadian Journal of Statistics 38:8-26; Lambert, Chevret 2016, Statistical Methods in Medical Research 25:2088-2102
    (the mean).

    Args:
        outcome: of the patients that are measured.
        risk: of each patient, ``(patient,)``, or by time, ``(patient, time)``; higher for an earlier event.
        training: of the patients that G, of being followed, is estimated of.
        times: ascending, in the unit of the outcome, within its follow-up.

    Raises:
        InputError: times are not ascending or not within follow-up, no case or no control at one, or G is 0 there.
    """
    at_times, mean = weighted_dynamic_auc(np.ones((1, len(outcome.time))), outcome, risk, training, times)
    if np.isnan(at_times).any():
        raise InputError(
            f"times: expected patients with the event by each time and without it then, got none of one at "
            f"{times[np.isnan(at_times[0])][0]:g}; choose times between the first event and the end of follow-up"
        )
    return DynamicAuc(at_times[0], float(mean[0]))


def weighted_dynamic_auc(
    weights: Float[np.ndarray, "resample patient"],
    outcome: Outcome,
    risk: np.ndarray,
    training: Outcome,
    times: Float[np.ndarray, " time"],
) -> tuple[Float[np.ndarray, "resample time"], Float[np.ndarray, " resample"]]:
    """AUC at each time and its mean for every row of patient weights.

    NaN in rows that lack cases or controls at a time.
    """
    check_scores(outcome, risk)
    check_times(outcome, times)
    case_weight = event_weights(outcome, training, float(times[-1]))
    by_time = np.broadcast_to(risk if risk.ndim == 2 else risk[:, None], (len(outcome.time), len(times)))
    at_times = np.stack(
        [
            _auc(weights, case_weight * (outcome.time <= t), (outcome.time > t).astype(np.float64), scores)
            for t, scores in zip(times, by_time.T, strict=True)
        ],
        axis=1,
    )
    fall = -np.diff(survival_at(outcome, times, weights), axis=1, prepend=1.0)
    return at_times, ratio((at_times * fall).sum(axis=1), fall.sum(axis=1))


def check_times(outcome: Outcome, times: Float[np.ndarray, " time"]) -> None:
    """Refuse times at which patients cannot be compared.

    Raises:
        InputError: there is none, they do not ascend, or one is not within follow-up.
    """
    if not len(times) or (np.diff(times) <= 0).any():
        raise InputError(f"times: expected ascending times, got {times.tolist()}; give each once, earliest first")
    first, last = outcome.time.min(initial=math.inf), outcome.time.max(initial=-math.inf)
    outside = times[(times < first) | (times >= last)]
    if len(outside):
        raise InputError(
            f"times: expected times within follow-up, got {outside[0]:g}; allowed: {first:g} to below {last:g}; "
            "choose times at which some patients are still followed"
        )


def event_weights(outcome: Outcome, training: Outcome, last: float) -> Float[np.ndarray, " patient"]:
    """``1 / G`` at events until a last time, 0 of other patients."""
    cases = outcome.event & (outcome.time <= last)
    weights = np.zeros(len(cases))
    weights[cases] = 1.0 / CensoringCurve.of(training).positive_at(outcome.time[cases])
    return weights


def _auc(
    weights: Float[np.ndarray, "resample patient"],
    case: Float[np.ndarray, " patient"],
    control: Float[np.ndarray, " patient"],
    risk: Float[np.ndarray, " patient"],
) -> Float[np.ndarray, " resample"]:
    """AUC of each resample, with one sort for all."""
    order = np.argsort(risk, kind="stable")
    starts = np.flatnonzero(np.diff(risk[order], prepend=-np.inf) > TIE)
    areas = [_area(weights[rows][:, order], case[order], control[order], starts) for rows in row_blocks(weights)]
    return np.concatenate(areas)


def _area(weights: np.ndarray, case: np.ndarray, control: np.ndarray, starts: np.ndarray) -> np.ndarray:
    cases, controls = (np.add.reduceat(weights * part, starts, axis=1) for part in (case, control))
    below = controls.cumsum(axis=1) - controls / 2
    return ratio((cases * below).sum(axis=1), cases.sum(axis=1) * controls.sum(axis=1))
