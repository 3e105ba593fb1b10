"""Figures of survival against scikit-survival, on cohorts with and without many ties."""

import numpy as np
import pytest
from sksurv.compare import compare_survival
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import brier_score as reference_brier
from sksurv.metrics import (
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
)
from sksurv.metrics import (
    integrated_brier_score as reference_ibs,
)
from sksurv.nonparametric import CensoringDistributionEstimator, kaplan_meier_estimator

from milcore.metrics.survival.breslow import breslow
from milcore.metrics.survival.brier_score import brier_score, integrated_brier_score
from milcore.metrics.survival.concordance import harrell_c, uno_c
from milcore.metrics.survival.cox import cox_regression
from milcore.metrics.survival.dynamic_auc import dynamic_auc
from milcore.metrics.survival.kaplan_meier import CensoringCurve, kaplan_meier
from milcore.metrics.survival.log_rank import log_rank
from tests.metrics.survival.cohorts import NAMES, cohort, halves

pytestmark = pytest.mark.parametrize("name", NAMES)
EXACT = {"rtol": 1e-6, "atol": 1e-6}


def reference(name: str) -> CoxPHSurvivalAnalysis:
    whole = cohort(name)
    return CoxPHSurvivalAnalysis(ties="efron", tol=1e-12).fit(whole.covariates, whole.surv)


def risks(name: str) -> np.ndarray:
    """Risks of the test patients, many of them equal."""
    training, test = halves(name)
    return np.round(cox_regression(training.outcome, training.covariates).risk(test.covariates), 1)


def times_of(name: str) -> np.ndarray:
    _, test = halves(name)
    return np.unique(np.quantile(test.outcome.time, np.linspace(0.1, 0.8, 8)))


def test_coefficients_of_cox(name):
    whole = cohort(name)
    model = cox_regression(whole.outcome, whole.covariates)
    np.testing.assert_allclose(model.coefficients, reference(name).coef_, rtol=1e-4, atol=1e-7)


def test_baseline_hazard_and_survival(name):
    whole, cox = cohort(name), reference(name)
    risk = whole.covariates @ cox.coef_
    baseline = breslow(whole.outcome, risk)
    np.testing.assert_allclose(
        baseline.cumulative_hazard * np.exp(-baseline.reference), cox.cum_baseline_hazard_.y, rtol=1e-6
    )
    times = baseline.time[[2, 7, 12, -1]]
    functions = cox.predict_survival_function(whole.covariates[:30])
    np.testing.assert_allclose(
        baseline.survival(risk[:30], times), [function(times) for function in functions], rtol=1e-6
    )


def test_harrell_c(name):
    _, test = halves(name)
    expected = concordance_index_censored(test.outcome.event, test.outcome.time, risks(name))[0]
    assert harrell_c(test.outcome, risks(name)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("share", [None, 0.5, 0.9])
def test_uno_c(name, share):
    training, test = halves(name)
    tau = None if share is None else float(np.quantile(test.outcome.time, share))
    expected = concordance_index_ipcw(training.surv, test.surv, risks(name), tau)[0]
    assert uno_c(test.outcome, risks(name), training.outcome, tau) == pytest.approx(expected, abs=1e-6)


def test_dynamic_auc_and_its_mean(name):
    training, test = halves(name)
    times = times_of(name)
    expected, mean = cumulative_dynamic_auc(training.surv, test.surv, risks(name), times)
    area = dynamic_auc(test.outcome, risks(name), training.outcome, times)
    np.testing.assert_allclose(area.at_times, expected, **EXACT)
    assert area.mean == pytest.approx(mean, abs=1e-6)


def test_dynamic_auc_of_risks_that_change_with_time(name):
    training, test = halves(name)
    times = times_of(name)
    by_time = risks(name)[:, None] + np.random.default_rng(1).normal(size=(len(test.covariates), len(times))).round(1)
    expected, mean = cumulative_dynamic_auc(training.surv, test.surv, by_time, times)
    area = dynamic_auc(test.outcome, by_time, training.outcome, times)
    np.testing.assert_allclose(area.at_times, expected, **EXACT)
    assert area.mean == pytest.approx(mean, abs=1e-6)


def test_brier_score_and_its_integral(name):
    training, test = halves(name)
    model = cox_regression(training.outcome, training.covariates)
    times = times_of(name)
    baseline = breslow(training.outcome, model.risk(training.covariates))
    survival = baseline.survival(model.risk(test.covariates), times)
    _, expected = reference_brier(training.surv, test.surv, survival, times)
    np.testing.assert_allclose(brier_score(test.outcome, survival, training.outcome, times), expected, **EXACT)
    whole = reference_ibs(training.surv, test.surv, survival, times)
    assert integrated_brier_score(test.outcome, survival, training.outcome, times) == pytest.approx(whole, abs=1e-6)


def test_kaplan_meier_with_its_interval(name):
    outcome = cohort(name).outcome
    time, survival, (low, high) = kaplan_meier_estimator(outcome.event, outcome.time, conf_type="log-log")
    curve = kaplan_meier(outcome)
    np.testing.assert_array_equal(curve.time, time)
    for values, expected in ((curve.survival, survival), (curve.low, low), (curve.high, high)):
        np.testing.assert_allclose(values, expected, **EXACT)


def test_probability_of_being_followed(name):
    training, test = halves(name)
    expected = CensoringDistributionEstimator().fit(training.surv).predict_proba(test.outcome.time)
    np.testing.assert_allclose(CensoringCurve.of(training.outcome).at(test.outcome.time), expected, **EXACT)


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_log_rank(name, groups):
    whole = cohort(name)
    column = np.argsort(np.argsort(whole.covariates[:, 0], kind="stable"), kind="stable")
    group = column * groups // len(column)
    statistic, p = compare_survival(whole.surv, group)
    test = log_rank(whole.outcome, group)
    assert test.statistic == pytest.approx(statistic, rel=1e-6)
    assert test.p == pytest.approx(p, rel=1e-6)
    assert test.degrees == groups - 1
