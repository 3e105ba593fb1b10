"""Linear Cox model by Newton's method, ties by Efron, and hazard ratios.

Axis words: patient, covariate, term (one of d terms of d events at one time).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import qr
from scipy.stats import norm

from milcore.errors import InputError
from milcore.metrics.classification import Estimate
from milcore.metrics.survival.outcome import Outcome, check_scores

MOST_STEPS = 50
# largest change of a coefficient of a standardised covariate in the last step
CONVERGENCE = 1e-9
# smallest eigenvalue of the information over its largest
SINGULAR = 1e-10
# smallest eigenvalue of the information at the end over that with all coefficients 0, below which it only underflowed
FADED = 1e-8
# log hazard ratio of one standard deviation beyond which no finite coefficient is best
LARGEST_COEFFICIENT = 30.0


class CoxModel(NamedTuple):
    """Coefficients of a linear Cox model, on the scale of the covariates.

    Args:
        coefficients: change of the log hazard with one unit of each covariate.
        standard_errors: of the coefficients, from the observed information.
        log_likelihood: partial, at the coefficients.
        null_log_likelihood: partial, with all coefficients 0.
        steps: of Newton's method.
    """

    coefficients: Float[np.ndarray, " covariate"]
    standard_errors: Float[np.ndarray, " covariate"]
    log_likelihood: float
    null_log_likelihood: float
    steps: int

    def risk(self, covariates: Float[np.ndarray, "patient covariate"]) -> Float[np.ndarray, " patient"]:
        """Log hazard of patients over that of one whose covariates are all 0."""
        risk: np.ndarray = covariates @ self.coefficients
        return risk

    @property
    def intervals(self) -> tuple[Estimate, ...]:
        """Hazard ratio of one unit of each covariate, with Wald's 95 % interval."""
        return tuple(
            _hazard_ratio(float(b), float(error))
            for b, error in zip(self.coefficients, self.standard_errors, strict=True)
        )


def cox_regression(
    outcome: Outcome, covariates: Float[np.ndarray, "patient covariate"], names: Sequence[str] = ()
) -> CoxModel:
    """Cox model that is linear in covariates, by the whole partial likelihood.

    ``log L = sum_t [ sum_(i in D) x_i b - sum_(l < d) log(sum_(i in R) exp(x_i b) - l / d sum_(i in D) exp(x_i b)) ]``
    over times t with the d patients D that have the event then and R at risk (Efron's ties). Newton's method with
    halved steps, on standardised covariates.

    Sources: Cox 1972, Journal of the Royal Statistical Society B 34:187-220; Efron 1977, Journal of the American
    Statistical Association 72:557-565.

    Args:
        outcome: times of events and censoring.
        covariates: numbers on any scale, without missing values.
        names: of the covariates, for messages.

    Raises:
        InputError: there is no event, a covariate is constant or a combination of others, or no finite coefficient is
            best since a covariate orders the events perfectly (a monotone likelihood).
    """
    check_scores(outcome, covariates, "covariates")
    if not outcome.events:
        raise InputError("Cox model: expected events, got none; choose patients some of whom have the event")
    titles = tuple(names) or tuple(str(k) for k in range(covariates.shape[1]))
    mean, scale = covariates.mean(axis=0), covariates.std(axis=0)
    x = (covariates - mean) / np.where(scale > 0, scale, 1.0)
    _require_full_rank(x, titles)
    fit = _newton(_Likelihood.of(outcome, x), titles)
    return fit._replace(coefficients=fit.coefficients / scale, standard_errors=fit.standard_errors / scale)


def hazard_ratio(outcome: Outcome, high: Bool[np.ndarray, " patient"]) -> Estimate:
    """Hazard of one group over that of the others, with Wald's 95 % interval.

    ``exp(b)`` and ``exp(b +- 1.96 se)`` of the Cox model whose one covariate is the group, ties by Efron.

    Args:
        outcome: of both groups.
        high: True in the group above the line.

    Raises:
        InputError: a group is without an event, or its events all precede or follow the others.
    """
    events = [int(outcome.event[members].sum()) for members in (high, ~high)]
    if not all(events):
        raise InputError(
            f"hazard ratio: expected events in both groups, got {events[0]} in the high one and {events[1]} in the "
            "other; choose another cut, or add patients"
        )
    model = cox_regression(outcome, high.astype(np.float64)[:, None], ("group",))
    return model.intervals[0]


def _hazard_ratio(coefficient: float, error: float) -> Estimate:
    half_width = float(norm.ppf(0.975)) * error
    value, low, high = (math.exp(min(coefficient + shift, 700.0)) for shift in (0.0, -half_width, half_width))
    return Estimate(value, low, high)


def _require_full_rank(x: Float[np.ndarray, "patient covariate"], names: Sequence[str]) -> None:
    """Refuse covariates of which one is constant or a combination of others."""
    _, triangle, order = qr(x, mode="economic", pivoting=True)
    size = np.abs(np.diag(triangle))
    rank = int((size > 1e-9 * max(size.max(initial=0.0), 1.0)).sum())
    if rank < x.shape[1]:
        raise InputError(
            f"covariates: expected none that is constant or a combination of others, got {names[int(order[rank])]}; "
            "leave it out"
        )


class _Terms(NamedTuple):
    """Derivatives of the log-likelihood at some coefficients."""

    log_likelihood: float
    gradient: Float[np.ndarray, " covariate"]
    information: Float[np.ndarray, "covariate covariate"]


class _Likelihood(NamedTuple):
    """Partial likelihood with patients sorted by time, latest first.

    Args:
        x: covariates.
        event: of the patients.
        last: index of the last patient of the same time, so that all up to it are at risk.
        group: of each term, the index of its time among the times with events.
        fraction: l / d of each term.
        time_of: of each patient, the number of times with events up to its own.
    """

    x: Float[np.ndarray, "patient covariate"]
    event: Bool[np.ndarray, " patient"]
    last: Int[np.ndarray, " time"]
    group: Int[np.ndarray, " term"]
    fraction: Float[np.ndarray, " term"]
    time_of: Int[np.ndarray, " patient"]

    @classmethod
    def of(cls, outcome: Outcome, x: Float[np.ndarray, "patient covariate"]) -> "_Likelihood":
        """Sort once; times with events are numbered from the earliest."""
        order = np.argsort(-outcome.time, kind="stable")
        time, event = outcome.time[order], outcome.event[order]
        times, counts = np.unique(time[event], return_counts=True)
        last = np.searchsorted(-time, -times, side="right") - 1
        group = np.repeat(np.arange(len(times)), counts)
        place = np.arange(len(group)) - np.repeat(counts.cumsum() - counts, counts)
        return cls(x[order], event, last, group, place / counts[group], np.searchsorted(times, time, side="right"))

    # far from the best coefficients a sum underflows to 0: the likelihood is -inf there, and the step is halved
    @np.errstate(divide="ignore", invalid="ignore")
    def at(self, b: Float[np.ndarray, " covariate"]) -> _Terms:
        """Log-likelihood, gradient and observed information, in matrix products."""
        eta = self.x @ b
        shift = eta.max()
        hazard = np.exp(eta - shift)
        events = self.time_of[self.event] - 1
        weighted = np.column_stack([hazard, hazard[:, None] * self.x])
        at_risk = weighted.cumsum(axis=0)[self.last]
        tied = np.zeros_like(at_risk)
        np.add.at(tied, events, weighted[self.event])
        sums = at_risk[self.group] - self.fraction[:, None] * tied[self.group]
        total, mean = sums[:, 0], sums[:, 1:] / sums[:, :1]
        inverse, shared = (np.bincount(self.group, part / total, len(self.last)) for part in (1.0, self.fraction))
        # each patient's share of all denominators it stands in: those of the times up to its own
        share = hazard * np.append(0.0, inverse.cumsum())[self.time_of]
        share[self.event] -= hazard[self.event] * shared[events]
        likelihood = float(eta[self.event].sum() - (np.log(total) + shift).sum())
        gradient = self.x[self.event].sum(axis=0) - self.x.T @ share
        return _Terms(likelihood, gradient, (self.x.T * share) @ self.x - mean.T @ mean)


def _newton(likelihood: _Likelihood, names: Sequence[str]) -> CoxModel:
    b = np.zeros(likelihood.x.shape[1])
    terms = start = likelihood.at(b)
    _require_information(start.information, names)
    for number in range(1, MOST_STEPS + 1):
        try:
            step = np.linalg.solve(terms.information, terms.gradient)
        except np.linalg.LinAlgError:
            break
        b, terms = _ascend(likelihood, b, terms, step)
        if np.abs(b).max(initial=0.0) > LARGEST_COEFFICIENT:
            break
        if _fades(terms, start):
            break
        if np.abs(step).max(initial=0.0) < CONVERGENCE:
            errors = np.sqrt(np.diag(np.linalg.inv(terms.information)))
            return CoxModel(b, errors, terms.log_likelihood, start.log_likelihood, number)
    largest = names[int(np.abs(b).argmax())]
    raise InputError(
        f"covariates: expected a likelihood with a largest value, got one that grows with {largest} "
        "without bound (it orders the events perfectly); leave it out, or add patients"
    )


def _fades(terms: _Terms, start: _Terms) -> bool:
    """True where the likelihood is flat because a coefficient goes to infinity."""
    smallest, at_start = (np.linalg.eigvalsh(each.information).min(initial=np.inf) for each in (terms, start))
    return not bool(smallest > FADED * at_start)


def _ascend(
    likelihood: _Likelihood, b: np.ndarray, terms: _Terms, step: np.ndarray
) -> tuple[Float[np.ndarray, " covariate"], _Terms]:
    """Newton's step, halved until the likelihood does not fall."""
    slack = 1e-12 * abs(terms.log_likelihood)
    for halving in range(30):
        moved = b + step / 2**halving
        after = likelihood.at(moved)
        if after.log_likelihood >= terms.log_likelihood - slack:
            break
    return moved, after


def _require_information(information: Float[np.ndarray, "covariate covariate"], names: Sequence[str]) -> None:
    """Refuse covariates that do not differ among the patients at risk at an event."""
    values, vectors = np.linalg.eigh(information)
    if len(values) and values[0] <= SINGULAR * max(values[-1], 1.0):
        raise InputError(
            "covariates: expected each to differ among patients at risk at an event, got "
            f"{names[int(np.abs(vectors[:, 0]).argmax())]}; leave it out, or add patients"
        )
