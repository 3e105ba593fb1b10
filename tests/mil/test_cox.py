"""Cox's partial likelihood: Efron's ties by hand, its derivative, and scores far apart."""

import math

import numpy as np
import pytest
import torch

from milcore.config import TrainConfig
from milcore.mil.bags.bags import Bags
from milcore.mil.cox import partial_likelihood
from milcore.mil.inference import instance_columns, predict_bags
from milcore.mil.model import make_model

RANDOM = np.random.default_rng(0)
CASES = {
    "no ties": (np.arange(1.0, 9.0), np.ones(8, np.int64)),
    "ties and censoring": (np.array([1, 1, 1, 2, 2, 3, 3, 3.0]), np.array([1, 1, 0, 1, 0, 1, 1, 1])),
    "all of one time": (np.full(8, 2.0), np.ones(8, np.int64)),
    "one event, the last": (np.arange(1.0, 9.0), np.array([0] * 7 + [1])),
    "one event, the first": (np.arange(1.0, 9.0), np.array([1] + [0] * 7)),
}


def slow_loss(score: torch.Tensor, time: np.ndarray, event: np.ndarray) -> torch.Tensor:
    """Efron's formula word by word, a loop over times and events."""
    loss = torch.zeros((), dtype=torch.float64)
    for at in sorted(set(time[event == 1])):
        risk = torch.exp(score[torch.from_numpy(time >= at)]).sum()
        of_events = score[torch.from_numpy((time == at) & (event == 1))]
        for place in range(len(of_events)):
            loss = loss + torch.log(risk - place / len(of_events) * torch.exp(of_events).sum())
        loss = loss - of_events.sum()
    return loss / event.sum()


def test_two_ties_of_three_are_worked_by_hand() -> None:
    """Hazards 1, 2 and 3: two events at time 1, one at time 2.

    At time 1 the denominators are 6 and 6 - (1 + 2) / 2 = 4.5, at time 2 it is 3: L = (log 6 + log 4.5 + log 3 - log 1
    - log 2 - log 3) / 3. The first bag has the derivative 1 (1/6 + 1/2 1/4.5) - 1 over 3, the third 3 (1/6 + 1/4.5 +
    1/3) - 1.
    """
    score = np.log([1.0, 2.0, 3.0])
    loss, weight, derivative = partial_likelihood(score, np.array([1.0, 1.0, 2.0]), np.array([1, 1, 1]))
    assert loss == pytest.approx((math.log(6) + math.log(4.5) - math.log(2)) / 3, rel=1e-14)
    assert weight == 3.0
    first, third = 1 / 6 + 0.5 / 4.5 - 1, 3 * (1 / 6 + 1 / 4.5 + 1 / 3) - 1
    assert derivative.tolist() == pytest.approx([first / 3, (2 * (1 / 6 + 0.5 / 4.5) - 1) / 3, third / 3], rel=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_derivative_are_those_of_the_slow_formula_and_autograd(case: str) -> None:
    time, event = CASES[case]
    score = torch.tensor(RANDOM.normal(size=8), requires_grad=True)
    expected = slow_loss(score, time, event)
    expected.backward()
    assert score.grad is not None
    loss, _, derivative = partial_likelihood(score.detach().numpy(), time, event)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(derivative, score.grad.numpy(), rtol=1e-10, atol=1e-14)
    assert abs(derivative.sum()) < 1e-14


@pytest.mark.parametrize("case", CASES)
def test_the_derivative_is_that_of_finite_differences(case: str) -> None:
    time, event = CASES[case]
    score, step = RANDOM.normal(size=8), 1e-5
    shifts = step * np.eye(8)
    differences = [
        (partial_likelihood(score + shift, time, event).loss - partial_likelihood(score - shift, time, event).loss)
        / (2 * step)
        for shift in shifts
    ]
    np.testing.assert_allclose(partial_likelihood(score, time, event).derivative, differences, atol=1e-9)


def test_the_loss_is_that_of_a_batch_in_any_order() -> None:
    time, event = CASES["ties and censoring"]
    score, order = RANDOM.normal(size=8), RANDOM.permutation(8)
    one, other = partial_likelihood(score, time, event), partial_likelihood(score[order], time[order], event[order])
    assert one.loss == pytest.approx(other.loss, rel=1e-13)
    np.testing.assert_allclose(one.derivative[order], other.derivative, rtol=1e-11, atol=1e-15)


def test_scores_far_apart_stay_finite() -> None:
    """At time 3 only the score of -2000 is at risk, whose exponential is 0 beside that of 2000."""
    score = np.array([2000.0, 0.0, -2000.0])
    loss, _, derivative = partial_likelihood(score, np.array([1.0, 2.0, 3.0]), np.ones(3, np.int64))
    assert loss == 0.0
    assert derivative.tolist() == [0.0, 0.0, 0.0]
    wrong = partial_likelihood(-score, np.array([1.0, 2.0, 3.0]), np.ones(3, np.int64))
    assert wrong.loss == pytest.approx((4000 + 2000) / 3)
    assert np.isfinite(wrong.derivative).all()


def test_a_batch_without_an_event_has_no_loss_and_no_weight() -> None:
    loss, weight, derivative = partial_likelihood(np.ones(3), np.arange(1.0, 4.0), np.zeros(3, np.int64))
    assert (loss, weight, derivative.tolist()) == (0.0, 0.0, [0.0] * 3)


def test_contributions_of_patches_add_up_to_the_risk_and_leaving_one_out_changes_it_by_as_much() -> None:
    """Both have the sign of the risk, not of a class of index 0."""
    config = TrainConfig(
        target="survival_cox", time="t", event="e", pooling="additive", hidden=8, attention_hidden=4, precision="fp64"
    )
    model = make_model(config, 5, 2).eval()
    torch.nn.init.constant_(model.classifier.bias, 0.25)
    bags = Bags.from_arrays([RANDOM.normal(size=(6, 5)).astype(np.float32)], times=[1.0], events=[1])
    risk = predict_bags(model, bags)[0].probability[0]
    columns = instance_columns([model], bags[0], 0, with_leave_one_out=True)
    assert columns["contribution"].sum() + 0.25 == pytest.approx(risk, rel=1e-9)
    kept = Bags.from_arrays([bags[0].instances[1:6].numpy()], times=[1.0], events=[1])
    without = predict_bags(model, kept)[0].probability[0]
    assert columns["leave_one_out"][0] == pytest.approx(risk - without, rel=1e-6, abs=1e-9)
