"""Validation of survival."""

import math

import numpy as np
import pytest
import torch

from milcore.cohort.survival import FollowUp
from milcore.config import TrainConfig
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.model import make_model
from milcore.training.fit import fit
from milcore.training.survival import concordance, prepare_hazards, validate_cox, validate_hazards

RISK = np.array([[2.0], [0.5], [-1.0]])
NONE = torch.zeros(0)


def entries(*follow_ups: tuple[float, int]) -> list[BagEntry]:
    return [
        BagEntry(f"b{k}", f"p{k}", 0, "val", (f"b{k}",), (1,), FollowUp(*each)) for k, each in enumerate(follow_ups)
    ]


def test_loss_and_harrell_s_c_of_a_validation_split() -> None:
    """Two events: the risk sets are all three bags, and the last two."""
    validation = validate_cox(entries((1.0, 1), (2.0, 1), (3.0, 0)), RISK, NONE, HAZARDS)
    score = RISK[:, 0]
    expected = sum(math.log(np.exp(score[k:]).sum()) - score[k] for k in range(2)) / 2
    assert (validation.loss, validation.metric) == (pytest.approx(expected, abs=1e-12), 1.0)


@pytest.mark.parametrize("events", [(0, 0, 0), (0, 0, 1)])
def test_without_a_pair_to_compare_no_epoch_is_the_best(events: tuple[int, int, int]) -> None:
    """The last bag's event has a loss of 0, whatever the scores: epoch 0 would be kept."""
    validation = validate_cox(entries(*((1.0 + k, event) for k, event in enumerate(events))), RISK, NONE, HAZARDS)
    assert np.isnan(validation).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_metric_is_defined_where_a_loss_can_be_compared(seed: int) -> None:
    """Three bags with ties: the loss is NaN where Harrell's C has no pair, and nowhere else."""
    generator = np.random.default_rng(seed)
    outcome = [(float(generator.integers(1, 3)), int(generator.integers(0, 2))) for _ in range(3)]
    validation = validate_cox(entries(*outcome), RISK, NONE, HAZARDS)
    times, events = np.array(outcome).T
    assert np.isnan(validation.loss) == np.isnan(concordance(times, events, RISK[:, 0]))
    assert np.isnan(validation.loss) == np.isnan(validation.metric)


HAZARDS = TrainConfig(
    target="survival_hazard", time="t", event="e", hazard_intervals=2, hidden=4, attention_hidden=2, epochs=2
)


def test_hazards_begin_as_a_life_table_of_the_training_bags() -> None:
    """Cut points 2 and 4. At risk and events: 6 and 2, 4 and 2; who is censored at 3.5 survived to the middle."""
    model = make_model(HAZARDS, 3, 2)
    prepare_hazards(model, entries((1.0, 1), (2.0, 1), (2.5, 0), (3.5, 0), (4.0, 1), (3.0, 1)))
    assert model.constants.tolist() == [2.0, 4.0]
    hazards = torch.sigmoid(model.classifier.bias).tolist()
    assert hazards == pytest.approx([2.5 / 7, 2.5 / 4], rel=1e-6)


def test_loss_and_harrell_s_c_of_hazards() -> None:
    """Hazards of 1/2: log 2 for each interval at risk; of all scores alike Harrell's C is 1/2."""
    validation = validate_hazards(
        entries((1.0, 1), (9.0, 0), (3.0, 1)), np.zeros((3, 2)), torch.tensor([2.0, 4.0], dtype=torch.float64), HAZARDS
    )
    assert validation.loss == pytest.approx(math.log(2) * (1 + 2 + 2) / 3)
    assert validation.metric == 0.5


def test_follow_up_outside_training_changes_no_weight_of_hazards() -> None:
    """Without validation bags nothing selects: cut points, first hazards and weights are those of training."""
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(4, 3)).astype(np.float32) for _ in range(16)]
    splits = ["train"] * 10 + ["test"] * 6
    weights = []
    for later in (1.0, 50.0):
        times = [1.0 + k for k in range(10)] + [later + k for k in range(6)]
        bags = Bags.from_arrays(arrays, times=times, events=[1, 1, 0, 1] * 4, splits=splits)
        weights.append(fit(bags, config=HAZARDS).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert weights[0]["cut_points"].tolist() == [5.0, 10.0]
