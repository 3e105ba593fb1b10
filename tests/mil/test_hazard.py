"""Discrete-time hazards: person-period rows and likelihood by hand, logistic regression, risk, and models of folds."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.autograd.functional import hessian, jacobian

from milcore.config import TrainConfig
from milcore.metrics.survival.discrete_hazard import SurvivalCurves, cut_points
from milcore.metrics.survival.outcome import Outcome
from milcore.mil.bags.bags import Bags
from milcore.mil.hazard import hazard_losses, hazard_risk, periods
from milcore.mil.inference import instance_columns, mean_constants, predict_bags
from milcore.mil.model import MILModel, make_model
from tests.metrics.survival.cohorts import NAMES, cohort

ENDS = np.array([2.0, 4.0, 8.0])
HAZARDS = np.array([0.1, 0.2, 0.5])
CONFIG = TrainConfig(
    target="survival_hazard", time="t", event="e", pooling="additive", hidden=8, attention_hidden=4, precision="fp64",
    hazard_intervals=3,
)  # fmt: skip
# time, event, intervals at risk, interval of the event, likelihood by hand
CASES = {
    "an event in the first interval": (1.0, 1, [1, 0, 0], 0, 0.1),
    "an event at a cut point is in the interval that it ends": (4.0, 1, [1, 1, 0], 1, 0.9 * 0.2),
    "an event in the last interval": (7.0, 1, [1, 1, 1], 2, 0.9 * 0.8 * 0.5),
    "an event after the last cut point": (9.0, 1, [1, 1, 1], None, 0.9 * 0.8 * 0.5),
    "censored before the middle of the first interval": (0.9, 0, [0, 0, 0], None, 1.0),
    "censored in the middle of an interval": (3.0, 0, [1, 1, 0], None, 0.9 * 0.8),
    "censored before the middle of an interval": (2.9, 0, [1, 0, 0], None, 0.9),
    "censored after the last cut point": (20.0, 0, [1, 1, 1], None, 0.9 * 0.8 * 0.5),
}


def logits_of(hazards: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.log(hazards / (1 - hazards)))


@pytest.mark.parametrize("case", CASES)
def test_likelihood_of_one_patient_is_worked_by_hand(case: str) -> None:
    time, event, at_risk, place, likelihood = CASES[case]
    rows = periods(np.array([time]), np.array([event]), ENDS)
    assert rows.at_risk.tolist() == [at_risk]
    assert rows.event.tolist() == [[int(k == place) for k in range(3)]]
    loss = hazard_losses(logits_of(HAZARDS)[None], rows)
    assert loss.item() == pytest.approx(-np.log(likelihood), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_model_equals_logistic_regression_of_person_period_rows(name: str) -> None:
    """Coefficients of each interval to 1e-4, by Newton's method on the loss; rows are made by another formula."""
    whole = cohort(name)
    time, event = whole.outcome.time, whole.outcome.event.astype(np.int64)
    ends = cut_points(whole.outcome, 2)
    covariates = np.column_stack([np.ones(len(time)), StandardScaler().fit_transform(whole.covariates)])
    rows, values = periods(time, event, ends), torch.from_numpy(covariates)
    shape = (len(ends), covariates.shape[1])

    def loss(coefficients: torch.Tensor) -> torch.Tensor:
        return hazard_losses(values @ coefficients.view(shape).T, rows).sum()

    coefficients = torch.zeros(shape[0] * shape[1], dtype=torch.float64)
    for _ in range(12):
        slope, curvature = jacobian(loss, coefficients), hessian(loss, coefficients)
        coefficients = coefficients - torch.linalg.solve(curvature, slope)
    for k, (low, high) in enumerate(zip([0.0, *ends[:-1]], ends, strict=True)):
        own = np.where(event == 1, time > low, time >= (low + high) / 2)
        died = (event == 1) & (time <= high)
        expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(covariates[own, 1:], died[own])
        intercept, *slopes = coefficients.view(shape)[k].tolist()
        np.testing.assert_allclose(slopes, expected.coef_[0], atol=1e-4)
        assert intercept == pytest.approx(expected.intercept_[0], abs=1e-4)


def test_the_risk_is_minus_the_expected_number_of_intervals_survived() -> None:
    """The event comes in interval 1, 2, 3 or later, after 0, 1, 2 or 3 intervals."""
    of_interval = [0.1, 0.9 * 0.2, 0.9 * 0.8 * 0.5, 0.9 * 0.8 * 0.5]
    expected = sum(survived * probability for survived, probability in enumerate(of_interval))
    assert hazard_risk(logits_of(HAZARDS)[None]).item() == pytest.approx(-expected, rel=1e-12)


def test_logits_far_from_0_stay_finite() -> None:
    logits = torch.tensor([[1000.0, -1000.0, 0.0], [-1000.0, -1000.0, -1000.0]], dtype=torch.float64)
    assert hazard_risk(logits).tolist() == [0.0, -3.0]
    loss = hazard_losses(logits, periods(np.array([1.0, 9.0]), np.array([0, 0]), ENDS))
    assert loss.tolist() == [1000.0, 0.0]


def model_of(ends: np.ndarray, seed: int) -> MILModel:
    model = make_model(CONFIG.model_copy(update={"seed": seed}), 5, 2).eval()
    model.constants.copy_(torch.from_numpy(ends))
    torch.nn.init.constant_(model.classifier.bias, -0.5)
    return model


def bags_of(*arrays: np.ndarray) -> Bags:
    return Bags.from_arrays(list(arrays), times=[1.0] * len(arrays), events=[1] * len(arrays))


def test_models_of_folds_have_mean_survival_at_their_mean_cut_points() -> None:
    """Each by its own curve; the risk of each is by its own intervals."""
    bags, other = bags_of(np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)), ENDS * [1.5, 1.25, 1.0]
    models = [model_of(ENDS, 0), model_of(other, 1)]
    values = predict_bags(models, bags)[0]
    alone = [predict_bags(model, bags)[0].probability for model in models]
    times = mean_constants(models).numpy()
    np.testing.assert_array_equal(times, (ENDS + other) / 2)
    curves = [SurvivalCurves(ends, of_model[None, 1:]) for ends, of_model in zip((ENDS, other), alone, strict=True)]
    np.testing.assert_allclose(values.members[:, 1:], [curve.survival(times)[0] for curve in curves], rtol=1e-12)
    np.testing.assert_allclose(values.members[:, 0], [of_model[0] for of_model in alone], rtol=1e-12)
    assert alone[0][0] == pytest.approx(-alone[0][1:].sum(), rel=1e-12)


def test_a_patch_contributes_to_the_risk_with_its_sign() -> None:
    """Leave-one-out is the change of the risk; contributions add up to the mean logit of the hazards."""
    array = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    bags, model = bags_of(array), model_of(ENDS, 0)
    risk, *survival = predict_bags(model, bags)[0].probability.tolist()
    columns = instance_columns([model], bags[0], 0, with_leave_one_out=True)
    without = predict_bags(model, bags_of(array[1:]))[0].probability[0]
    assert columns["leave_one_out"][0] == pytest.approx(risk - without, rel=1e-6, abs=1e-9)
    hazards = 1 - np.array(survival) / np.array([1.0, *survival[:-1]])
    mean = np.log(hazards / (1 - hazards)).mean()
    assert columns["contribution"].sum() - 0.5 == pytest.approx(mean, rel=1e-9)


def test_the_middle_of_an_interval_decides_with_least_bias() -> None:
    """Life tables of cohorts with a constant hazard, three in five censored: survival at the third of four cut points.

    Beside the rule, censoring counts only where the interval has ended, or always.
    """
    random, errors = np.random.default_rng(0), []
    for _ in range(400):
        event_time, censoring = random.exponential(size=400), random.exponential(size=400)
        censoring *= np.quantile(event_time / censoring, 0.4)
        time, event = np.minimum(event_time, censoring), (event_time <= censoring).astype(np.int64)
        ends = cut_points(Outcome.of(time, event), 4)
        place, censored = np.searchsorted(ends, time), (event == 0)[:, None]
        at_risk, came = periods(time, event, ends)
        ended, always = ((np.arange(4) < last[:, None]) | (came == 1) for last in (place, place + censored[:, 0]))
        survival = [np.prod(1 - (came.sum(0) / rule.sum(0))[:3]) for rule in (at_risk, ended, always)]
        errors.append(survival - np.exp(-ends[2]))
    middle, ended, always = np.mean(errors, axis=0)
    assert abs(middle) < 0.01
    assert ended < -0.04
    assert always > 0.04
