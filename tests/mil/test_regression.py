"""Regression: Huber's loss by hand and by scikit-learn, and predictions in the unit of the column."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import HuberRegressor

from milcore.config import TrainConfig
from milcore.metrics.regression.scale import target_scale
from milcore.mil.bags.bags import Bags
from milcore.mil.inference import instance_columns, predict_bags
from milcore.mil.model import MILModel, make_model
from milcore.mil.regression import huber_losses

CONFIG = TrainConfig(
    target="regression", target_column="t", pooling="additive", hidden=8, attention_hidden=4, precision="fp64"
)
SCALE = torch.tensor([10.0, 2.0], dtype=torch.float64)


def test_losses_of_errors_within_and_beyond_delta_are_by_hand() -> None:
    """Errors 0.5, -1, 3 and -4 standard deviations with delta 1.5: squares, then 1.5 (e - 0.75)."""
    standardised = torch.tensor([[0.5], [0.0], [3.0], [-4.0]], dtype=torch.float64)
    values = torch.tensor([10.0, 12.0, 10.0, 10.0], dtype=torch.float64)
    losses = huber_losses(standardised, values, SCALE, 1.5)
    assert losses.tolist() == pytest.approx([0.125, 0.5, 1.5 * 2.25, 1.5 * 3.25], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_model_equals_the_huber_regressor(seed: int) -> None:
    """Coefficients to 1e-4 by LBFGS on the loss, a fifth of the values being outliers.

    scikit-learn estimates a scale beside the coefficients and is linear beyond ``epsilon`` of it; at its own scale the
    coefficients minimise Huber's loss with ``delta = epsilon * scale``, here in standard deviations of the values.
    """
    random = np.random.default_rng(seed)
    features = random.normal(size=(120, 4))
    values = 30 + features @ np.array([5.0, -3, 0, 1]) + random.normal(size=120) + 40 * (random.uniform(size=120) < 0.2)
    expected = HuberRegressor(epsilon=1.35, alpha=0.0, tol=1e-10, max_iter=10_000).fit(features, values)
    scale = torch.tensor(target_scale(values), dtype=torch.float64)
    delta = expected.epsilon * expected.scale_ / float(scale[1])
    of_bags, targets = torch.from_numpy(features), torch.from_numpy(values)
    layer = torch.nn.Linear(4, 1).double()
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = huber_losses(layer(of_bags), targets, scale, delta).sum()
        total.backward()
        return total

    optimizer.step(loss)
    mean, deviation = scale.tolist()
    np.testing.assert_allclose(deviation * layer.weight[0].detach().numpy(), expected.coef_, atol=1e-4)
    assert mean + deviation * layer.bias.item() == pytest.approx(expected.intercept_, abs=1e-4)


def model_of(scale: tuple[float, float], seed: int, config: TrainConfig = CONFIG) -> MILModel:
    model = make_model(config.model_copy(update={"seed": seed}), 5, 2).eval()
    model.constants.copy_(torch.tensor(scale))
    torch.nn.init.constant_(model.classifier.bias, 0.5)
    return model


def bags_of(*arrays: np.ndarray) -> Bags:
    return Bags.from_arrays(list(arrays), values=np.arange(len(arrays)))


def array(seed: int, instances: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(instances, 5)).astype(np.float32)


def test_a_prediction_is_in_the_unit_of_the_column_and_the_mean_of_folds_of_their_own_scales() -> None:
    bags, models = bags_of(array(0)), [model_of((10.0, 2.0), 0), model_of((12.0, 3.0), 1)]
    standardised = [model_of((0.0, 1.0), seed) for seed in (0, 1)]
    z = [float(predict_bags(model, bags)[0].probability[0]) for model in standardised]
    members = predict_bags(models, bags)[0].members[:, 0]
    np.testing.assert_allclose(members, [10.0 + 2.0 * z[0], 12.0 + 3.0 * z[1]], rtol=1e-12)


def test_a_patch_contributes_with_its_sign_in_the_unit_of_the_column() -> None:
    """Leave-one-out is the change of the value; contributions add up to it less the mean and the bias."""
    bags, model = bags_of(array(1)), model_of((10.0, 2.0), 0)
    value = predict_bags(model, bags)[0].probability[0]
    columns = instance_columns([model], bags[0], 0, with_leave_one_out=True)
    without = predict_bags(model, bags_of(array(1)[1:]))[0].probability[0]
    assert columns["leave_one_out"][0] == pytest.approx(value - without, rel=1e-6, abs=1e-9)
    assert columns["contribution"].sum() == pytest.approx(value - 10.0 - 2.0 * 0.5, rel=1e-9)
    assert "instance_probability" not in columns


@pytest.mark.parametrize("pooling", ["max", "mean", "lse", "gem", "attention", "additive", "multi_head_attention"])
def test_the_order_of_bags_and_of_instances_changes_no_prediction(pooling: str) -> None:
    model = model_of((10.0, 2.0), 0, CONFIG.model_copy(update={"pooling": pooling}))
    arrays, random = [array(seed, 3 + seed) for seed in range(6)], np.random.default_rng(7)
    order = random.permutation(6)
    others = bags_of(*(random.permutation(arrays[k]) for k in order))
    before, after = predict_bags(model, bags_of(*arrays)), predict_bags(model, others)
    for place, k in enumerate(order):
        np.testing.assert_allclose(after[place].probability, before[k].probability, rtol=1e-9)
