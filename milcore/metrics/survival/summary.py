"""All metrics of predicted risks against follow-up, each with its interval.

Everything that is estimated for a metric - the weights of censoring, the baseline hazard, the cut of the groups, the
times - comes from the training patients. A metric that a split cannot define is NaN with a reason.

Axis words: patient, time, resample.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from milcore.errors import InputError
from milcore.metrics.classification import Estimate, estimate
from milcore.metrics.resamples import RESAMPLES, patient_weights
from milcore.metrics.survival.breslow import breslow
from milcore.metrics.survival.brier_score import integral, weighted_brier_score
from milcore.metrics.survival.concordance import weighted_harrell_c, weighted_uno_c
from milcore.metrics.survival.cox import hazard_ratio
from milcore.metrics.survival.dynamic_auc import weighted_dynamic_auc
from milcore.metrics.survival.kaplan_meier import CensoringCurve, kaplan_meier
from milcore.metrics.survival.log_rank import log_rank
from milcore.metrics.survival.outcome import Outcome
from milcore.metrics.survival.risk_groups import CalibrationGroup, RiskGroup, calibration_groups, risk_groups

DECILES = np.arange(1, 10) / 10
NAMES = (
    "harrell_c",
    "uno_c",
    "mean_dynamic_auc",
    "integrated_brier_score",
    "kaplan_meier_integrated_brier_score",
    "hazard_ratio",
    "log_rank_p",
)
NO_PATIENT = "the split holds no patient"
NO_PAIR = "the split holds no pair of patients whose order of events is known"
NO_CASE = "no patient has the event by a time while another is followed beyond it"
NO_TIME = "no time of an event in training lies within the follow-up of the split"


class RiskPredictions(NamedTuple):
    """Outcome and predicted risk of the patients of a split.

    Args:
        outcome: times of events and censoring.
        risk: log hazard of each patient, up to a constant.
        patients: their names.
        sites: the site of each, empty where unknown.
    """

    outcome: Outcome
    risk: Float[np.ndarray, " patient"]
    patients: Sequence[str]
    sites: Sequence[str] = ()

    def of_site(self, site: str) -> "RiskPredictions":
        """Those of one site."""
        members = np.flatnonzero(np.asarray(self.sites) == site)
        return RiskPredictions(
            self.outcome.of_patients(members), self.risk[members], [self.patients[int(index)] for index in members]
        )


@dataclass(frozen=True, slots=True)
class SurvivalMetrics:
    """Metrics of a split whose target is the time to an event.

    Args:
        patients: number of them.
        events: number with the event.
        overall: metrics by name, those of ``NAMES``.
        times: at which survival is measured, in the unit of the outcome.
        tau: last of the times, up to which Uno's C counts events; None where there is no time.
        dynamic_auc: at each of the times.
        brier_score: at each of the times.
        cut: median risk of the training patients, the highest called low.
        groups: patients of low and of high risk.
        calibration: at the middle one of the times.
        of_sites: metrics of each of several sites, at those of the times at which it can be measured.
    """

    patients: int
    events: int
    overall: dict[str, Estimate]
    times: tuple[float, ...]
    tau: float | None
    dynamic_auc: tuple[Estimate, ...]
    brier_score: tuple[Estimate, ...]
    cut: float
    groups: tuple[RiskGroup, RiskGroup]
    calibration: tuple[CalibrationGroup, ...]
    of_sites: dict[str, "SurvivalMetrics"] = field(default_factory=dict)


def survival_metrics(
    test: RiskPredictions,
    training: RiskPredictions,
    seed: int,
    times: Float[np.ndarray, " time"] | None = None,
    survival: Float[np.ndarray, "patient time"] | None = None,
) -> SurvivalMetrics:
    """Measure predicted risks, with 95 % intervals.

    Intervals are of resampled patients; those of the hazard ratio are Wald's, those of curves log-log. The p of the
    log-rank test has none. ``kaplan_meier_integrated_brier_score`` is that of one curve for all, which a model has to
    beat: the Kaplan-Meier estimate of the training patients.

    Args:
        test: of the patients that are measured.
        training: of those that the model was trained on.
        seed: of the resampling.
        times: at which survival is measured; None takes ``measurement_times``.
        survival: predicted for each test patient at the times; None takes Breslow's, with the risks of training.
    """
    at = measurement_times(test.outcome, training.outcome) if times is None else times
    predicted = _predicted_survival(test, training, at) if survival is None else survival
    whole = _measure(test, training, at, predicted, seed)
    sites = sorted(set(test.sites) - {""})
    if len(sites) < 2:
        return whole
    for site in sites:
        members, of_site = np.asarray(test.sites) == site, test.of_site(site)
        kept = _measurable(at, of_site.outcome, training.outcome)
        whole.of_sites[site] = _measure(of_site, training, at[kept], predicted[members][:, kept], seed)
    return whole


def measurement_times(test: Outcome, training: Outcome) -> Float[np.ndarray, " time"]:
    """Deciles of training event times at which test patients can be measured.

    Those are left out that lie before the first event of the test patients or outside their follow-up, or where all
    training patients are censored.
    """
    if not training.events or not len(test.time):
        return np.zeros(0)
    times = np.unique(np.quantile(training.time[training.event], DECILES, method="inverted_cdf"))
    within: np.ndarray = times[_measurable(times, test, training)]
    return within


def _measurable(times: Float[np.ndarray, " time"], test: Outcome, training: Outcome) -> Bool[np.ndarray, " time"]:
    """True for times from the first event to the end of follow-up.

    Where all training patients are censored it is False.
    """
    followed = CensoringCurve.of(training).at(times) > 0
    first = test.time[test.event].min() if test.events else test.time.min()
    within: np.ndarray = followed & (times >= first) & (times < test.time.max())
    return within


def _predicted_survival(
    test: RiskPredictions, training: RiskPredictions, times: Float[np.ndarray, " time"]
) -> Float[np.ndarray, "patient time"]:
    if not training.outcome.events:
        return np.ones((len(test.risk), len(times)))
    return breslow(training.outcome, training.risk).survival(test.risk, times)


def _measure(
    test: RiskPredictions,
    training: RiskPredictions,
    times: Float[np.ndarray, " time"],
    survival: Float[np.ndarray, "patient time"],
    seed: int,
) -> SurvivalMetrics:
    """All metrics of one set of patients."""
    outcome, cut = test.outcome, float(np.median(training.risk)) if len(training.risk) else math.nan
    weights, tau = _weights(test.patients, seed), float(times[-1]) if len(times) else None
    *areas, mean_area = _dynamic_auc(weights, test, training.outcome, times)
    overall = {
        **_concordance(weights, test, training.outcome, tau),
        "mean_dynamic_auc": mean_area,
        **_integrated(weights, outcome, training.outcome, times, survival),
        **_of_groups(outcome, test.risk > cut),
    }
    middle = len(times) // 2
    return SurvivalMetrics(
        patients=len(outcome.time),
        events=outcome.events,
        overall={name: overall[name] for name in NAMES},
        times=tuple(times.tolist()),
        tau=tau,
        dynamic_auc=tuple(areas),
        brier_score=_estimates(
            lambda: weighted_brier_score(weights, outcome, survival, training.outcome, times), len(times), NO_PATIENT
        ),
        cut=cut,
        groups=risk_groups(outcome, test.risk, cut),
        calibration=calibration_groups(outcome, survival[:, middle], float(times[middle])) if len(times) else (),
    )


def _weights(patients: Sequence[str], seed: int) -> Float[np.ndarray, "resample patient"]:
    """All patients once in the first row, resamples of them in the others."""
    count = len(patients)
    resamples = patient_weights(list(patients), RESAMPLES, seed) if count else np.zeros((RESAMPLES, 0))
    return np.concatenate([np.ones((1, count)), resamples])


def harrell_c_estimate(test: RiskPredictions, seed: int) -> Estimate:
    """Harrell's C with the 95 % interval of resampled patients."""
    return _estimate(lambda: weighted_harrell_c(_weights(test.patients, seed), test.outcome, test.risk), NO_PAIR)


def _concordance(
    weights: Float[np.ndarray, "resample patient"], test: RiskPredictions, training: Outcome, tau: float | None
) -> dict[str, Estimate]:
    """Harrell's and Uno's C."""
    outcome, risk = test.outcome, test.risk
    return {
        "harrell_c": _estimate(lambda: weighted_harrell_c(weights, outcome, risk), NO_PAIR),
        "uno_c": _estimate(lambda: weighted_uno_c(weights, outcome, risk, training, tau), NO_PAIR),
    }


def _dynamic_auc(
    weights: Float[np.ndarray, "resample patient"],
    test: RiskPredictions,
    training: Outcome,
    times: Float[np.ndarray, " time"],
) -> tuple[Estimate, ...]:
    """AUC at each time, and last their mean."""
    if not len(times):
        return (Estimate(math.nan, reason=NO_TIME),)
    return _estimates(
        lambda: np.column_stack(weighted_dynamic_auc(weights, test.outcome, test.risk, training, times)),
        len(times) + 1,
        NO_CASE,
    )


def _integrated(
    weights: Float[np.ndarray, "resample patient"],
    outcome: Outcome,
    training: Outcome,
    times: Float[np.ndarray, " time"],
    survival: Float[np.ndarray, "patient time"],
) -> dict[str, Estimate]:
    """Integrated Brier score of the predictions, and of one Kaplan-Meier curve for all."""
    names = ("integrated_brier_score", "kaplan_meier_integrated_brier_score")
    if not len(times):
        return {name: Estimate(math.nan, reason=NO_TIME) for name in names}
    of_all = np.tile(kaplan_meier(training).at(times), (len(outcome.time), 1))

    def score(curves: Float[np.ndarray, "patient time"]) -> Estimate:
        return _estimate(
            lambda: integral(weighted_brier_score(weights, outcome, curves, training, times), times), NO_PATIENT
        )

    return {name: score(curves) for name, curves in zip(names, (survival, of_all), strict=True)}


def _of_groups(outcome: Outcome, high: Bool[np.ndarray, " patient"]) -> dict[str, Estimate]:
    """Hazard ratio of high over low risk, and p of the log-rank test."""
    return {
        "hazard_ratio": _or_reason(lambda: hazard_ratio(outcome, high)),
        "log_rank_p": _or_reason(lambda: Estimate(log_rank(outcome, high.astype(np.int64)).p)),
    }


def _or_reason(compute: Callable[[], Estimate]) -> Estimate:
    """The estimate, or NaN with what stands against it."""
    try:
        return compute()
    except InputError as error:
        return Estimate(math.nan, reason=error.line)


def _estimate(compute: Callable[[], Float[np.ndarray, " resample"]], reason: str) -> Estimate:
    """A metric of which the first row is the value, the others resamples."""
    return _estimates(lambda: compute()[:, None], 1, reason)[0]


def _estimates(
    compute: Callable[[], Float[np.ndarray, "resample metric"]], count: int, reason: str
) -> tuple[Estimate, ...]:
    """Metrics of which the first row holds the values, the others resamples.

    Args:
        compute: their values.
        count: number of metrics.
        reason: of a value that is NaN; an error's line is the reason of all.
    """
    try:
        values = compute()
    except InputError as error:
        return (Estimate(math.nan, reason=error.line),) * count
    return tuple(estimate(float(column[0]), column[1:], reason) for column in values.T)
