"""Regression in training: the scale of the training bags alone, validation, and what cannot be learned from."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from milcore.config import TrainConfig
from milcore.errors import InputError
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.inference import predict_bags
from milcore.mil.model import make_model
from milcore.training.fit import fit
from milcore.training.regression import prepare_scale, validate_values

CONFIG = TrainConfig(target="regression", target_column="t", hidden=4, attention_hidden=2, epochs=2)
SCALE = torch.tensor([10.0, 2.0], dtype=torch.float64)


def entries(*values: float) -> list[BagEntry]:
    return [BagEntry(f"b{k}", f"p{k}", 0, "val", (f"b{k}",), (1,), value=value) for k, value in enumerate(values)]


def test_a_model_begins_at_mean_and_standard_deviation_of_the_training_bags() -> None:
    model = make_model(CONFIG, 3, 2)
    prepare_scale(model, entries(2, 4, 4, 4, 5, 5, 7, 9))
    assert model.constants.tolist() == [5.0, 2.0]
    assert model.classifier.bias.tolist() == [0.0]


def test_loss_and_r2_of_a_validation_split() -> None:
    """Errors 0, 0.5 and 2 standard deviations: Huber's loss is 0, 0.125 and 1.5."""
    standardised = np.array([[0.0], [1.5], [-1.0]])
    validation = validate_values(entries(10.0, 12.0, 12.0), standardised, SCALE, CONFIG)
    assert validation.loss == pytest.approx((0.125 + 1.5) / 3, abs=1e-12)
    assert validation.metric == pytest.approx(r2_score([10.0, 12, 12], [10.0, 13, 8]), abs=1e-12)


def test_a_higher_r2_ranks_before_a_lower_loss() -> None:
    """One value far off: the squares that R2 counts tell the models apart otherwise than Huber's loss."""
    truth = entries(10.0, 12.0, 30.0)
    near, far = (
        validate_values(truth, (np.array(each)[:, None] - 10.0) / 2.0, SCALE, CONFIG)
        for each in ([13.0, 15.0, 27.0], [10.0, 12.0, 24.0])
    )
    assert near.loss > far.loss
    assert near.metric > far.metric
    assert near.rank < far.rank


@pytest.mark.parametrize("values", [(12.0,), (12.0, 12.0)])
def test_without_values_that_differ_the_loss_alone_ranks(values: tuple[float, ...]) -> None:
    validation = validate_values(entries(*values), np.zeros((len(values), 1)), SCALE, CONFIG)
    assert math.isnan(validation.metric)
    assert validation.rank == (math.inf, 0.5)


def test_values_outside_training_change_no_weight() -> None:
    """Without validation bags nothing selects: scale and weights are those of training."""
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(4, 3)).astype(np.float32) for _ in range(16)]
    splits, training = ["train"] * 10 + ["test"] * 6, [float(k) for k in range(10)]
    first, other = (
        fit(Bags.from_arrays(arrays, values=training + [late] * 6, splits=splits), config=CONFIG).state_dict()
        for late in (1.0, -500.0)
    )
    assert all(torch.equal(first[name], other[name]) for name in first)
    assert first["target_scale"].tolist() == pytest.approx([4.5, np.std(training)])


def test_values_of_arrays_are_learned_in_their_unit() -> None:
    """Shifted bags have the higher values; a mapping may be in any order, a text is a number too."""
    random = np.random.default_rng(0)
    arrays = {f"b{k:02d}": random.normal(3.0 * (k % 2), 1.0, (5, 4)).astype(np.float16) for k in range(24)}
    values = {name: f"{1e6 + 2e5 * (k % 2)}" for k, name in reversed(list(enumerate(arrays)))}
    bags = Bags.from_arrays(arrays, values=values)
    model = fit(bags, config=CONFIG, epochs=60, learning_rate=0.02, dropout=0.0)
    predicted = np.array([prediction.probability[0] for prediction in predict_bags(model, bags).values()])
    np.testing.assert_allclose(predicted, [1e6 + 2e5 * (k % 2) for k in range(24)], atol=3e4)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([1.0, math.inf], "values: bag 1: expected a value, got inf"),
        ([1.0, None], "values: bag 1: expected a value, got None"),
        (["1,5", 2.0], "values: expected numbers: bag 0: got '1,5', whose comma may part thousands or decimals"),
        (["high", 2.0], "values: expected numbers: bag 0: got 'high'; allowed: finite numbers"),
        ([1.0], "values: expected one for each of 2 bags, got 1"),
    ],
)
def test_values_that_are_no_numbers_are_one_line(values: list[object], line: str) -> None:
    with pytest.raises(InputError) as raised:
        Bags.from_arrays([np.zeros((2, 3), np.float32)] * 2, values=values)
    assert line in raised.value.line


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"labels": [0, 1]}, "bags: expected training bags with a value, got none of 2 bag"),
        ({"values": [3.0, 3.0]}, "target_column: expected values that differ in training.*got only 3 in 2 training"),
    ],
)
def test_bags_without_values_or_of_one_are_not_trained_on(given: dict[str, object], line: str) -> None:
    bags = Bags.from_arrays([np.zeros((2, 3), np.float32)] * 2, **given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=line):
        fit(bags, config=CONFIG)


def test_the_order_of_bags_changes_no_weight_where_a_step_takes_all() -> None:
    """Without dropout, which hangs on the index of a bag; sums in another order differ by rounding."""
    random = np.random.default_rng(3)
    arrays = {f"b{k}": random.normal(size=(2 + k, 3)) for k in range(7)}
    values = {name: float(k**2) for k, name in enumerate(arrays)}
    config = CONFIG.model_copy(update={"precision": "fp64", "batch_size": "all", "epochs": 10, "dropout": 0.0})
    first, other = (
        fit(Bags.from_arrays({name: arrays[name] for name in names}, values=values), config=config).state_dict()
        for names in (list(arrays), random.permutation(list(arrays)).tolist())
    )
    for name, weight in first.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-9, atol=1e-9)
