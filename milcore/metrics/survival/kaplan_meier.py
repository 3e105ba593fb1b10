"""Kaplan-Meier estimates of survival and of being still followed (not censored).

Axis words: patient, time.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm

from milcore.errors import InputError
from milcore.metrics.survival.outcome import Outcome, TimeCounts, product_limit, step_values


class KaplanMeier(NamedTuple):
    """Survival at each unique time, with its 95 % interval.

    Args:
        time: unique times of events and censoring, ascending, in the unit of the outcome.
        survival: probability that the event comes after ``time``.
        low: lower end of the interval at this time.
        high: upper end.
        at_risk: patients followed until this time or longer.
        events: events at this time.
    """

    time: Float[np.ndarray, " time"]
    survival: Float[np.ndarray, " time"]
    low: Float[np.ndarray, " time"]
    high: Float[np.ndarray, " time"]
    at_risk: Int[np.ndarray, " time"]
    events: Int[np.ndarray, " time"]

    def at(self, times: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
        """Survival at any times: 1 before the first, that of the last after it."""
        return step_values(self.time, self.survival, times, before=1.0)

    def at_risk_at(self, times: Float[np.ndarray, " time"]) -> Int[np.ndarray, " time"]:
        """Patients followed until these times or longer."""
        return np.append(self.at_risk, 0)[np.searchsorted(self.time, times, side="left")]


def kaplan_meier(outcome: Outcome) -> KaplanMeier:
    """Kaplan-Meier estimate S(t) with pointwise log-log intervals.

    ``S(t) = prod_(u <= t) (1 - d(u) / n(u))`` over n(u) patients at risk and d(u) events, and
    ``S(t)^exp(+-1.96 s / log S(t))`` with Greenwood's ``s^2 = sum_(u <= t) d / (n (n - d))``. Where S is 0 or 1 the
    interval is that point.

    Sources: Kaplan, Meier 1958, Journal of the American Statistical Association 53:457-481; Borgan, Liestol 1990,
    Scandinavian Journal of Statistics 17:35-41 (the interval).

    Raises:
        InputError: there is no patient.
    """
    _require_patients(outcome)
    counts = TimeCounts.of(outcome)
    survival = product_limit(counts.events, counts.at_risk)[0]
    at_risk, events = counts.at_risk[0], counts.events[0]
    low, high = _log_log(survival, events, at_risk)
    return KaplanMeier(counts.time, survival, low, high, at_risk.astype(np.int64), events.astype(np.int64))


def _log_log(survival: np.ndarray, events: np.ndarray, at_risk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left = at_risk * (at_risk - events)
    variance = np.cumsum(np.divide(events, left, out=np.zeros_like(events), where=left > 0))
    inside = (survival > 0) & (survival < 1)
    log = np.log(survival, out=np.full_like(survival, -1.0), where=inside)
    width = float(norm.ppf(0.975)) * np.sqrt(variance) / log
    low, high = (np.where(inside, survival ** np.exp(sign * width), survival) for sign in (-1, 1))
    return low, high


class CensoringCurve(NamedTuple):
    """Probability G(t) of being followed beyond a time, of the training patients.

    Args:
        time: unique times, ascending.
        probability: G at each of them.
    """

    time: Float[np.ndarray, " time"]
    probability: Float[np.ndarray, " time"]

    @classmethod
    def of(cls, training: Outcome) -> "CensoringCurve":
        """Kaplan-Meier estimate of G; at equal times events come before censoring.

        Source: Graf, Schmoor, Sauerbrei, Schumacher 1999, Statistics in Medicine 18:2529-2545.

        Raises:
            InputError: there is no patient.
        """
        _require_patients(training)
        counts = TimeCounts.of(training)
        return cls(counts.time, product_limit(counts.censored, counts.at_risk - counts.events)[0])

    def at(self, times: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
        """G at any times: 1 before the first, that of the last after it."""
        return step_values(self.time, self.probability, times, before=1.0)

    def positive_at(self, times: Float[np.ndarray, " patient"]) -> Float[np.ndarray, " patient"]:
        """G at times that weights ``1 / G`` are needed of.

        Raises:
            InputError: a time lies after the last of training, or where G is 0.
        """
        last = float(self.time[-1])
        if len(times) and times.max() > last:
            raise InputError(
                f"times: expected times within the training patients' follow-up, got {times.max():g}; "
                f"allowed: up to {last:g}; choose an earlier tau or earlier times"
            )
        values = self.at(times)
        if (values <= 0).any():
            raise InputError(
                f"times: expected times before all training patients are censored, got {times[values <= 0].min():g}; "
                f"allowed: below {last:g}; choose an earlier tau or earlier times"
            )
        return values


def _require_patients(outcome: Outcome) -> None:
    if not len(outcome.time):
        raise InputError("outcome: expected at least one patient, got none; choose a split that holds patients")
