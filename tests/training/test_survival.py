"""Validation of survival."""

import math

import numpy as np
import pytest

from milcore.cohort.survival import FollowUp
from milcore.mil.bags.bags import BagEntry
from milcore.training.survival import concordance, validate_risk

RISK = np.array([[2.0], [0.5], [-1.0]])


def entries(*follow_ups: tuple[float, int]) -> list[BagEntry]:
    return [
        BagEntry(f"b{k}", f"p{k}", 0, "val", (f"b{k}",), (1,), FollowUp(*each)) for k, each in enumerate(follow_ups)
    ]


def test_loss_and_harrell_s_c_of_a_validation_split() -> None:
    """Two events: the risk sets are all three bags, and the last two."""
    validation = validate_risk(entries((1.0, 1), (2.0, 1), (3.0, 0)), RISK)
    score = RISK[:, 0]
    expected = sum(math.log(np.exp(score[k:]).sum()) - score[k] for k in range(2)) / 2
    assert (validation.loss, validation.metric) == (pytest.approx(expected, abs=1e-12), 1.0)


@pytest.mark.parametrize("events", [(0, 0, 0), (0, 0, 1)])
def test_without_a_pair_to_compare_no_epoch_is_the_best(events: tuple[int, int, int]) -> None:
    """The last bag's event has a loss of 0, whatever the scores: epoch 0 would be kept."""
    validation = validate_risk(entries(*((1.0 + k, event) for k, event in enumerate(events))), RISK)
    assert np.isnan(validation).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_metric_is_defined_where_a_loss_can_be_compared(seed: int) -> None:
    """Three bags with ties: the loss is NaN where Harrell's C has no pair, and nowhere else."""
    generator = np.random.default_rng(seed)
    outcome = [(float(generator.integers(1, 3)), int(generator.integers(0, 2))) for _ in range(3)]
    validation = validate_risk(entries(*outcome), RISK)
    times, events = np.array(outcome).T
    assert np.isnan(validation.loss) == np.isnan(concordance(times, events, RISK[:, 0]))
    assert np.isnan(validation.loss) == np.isnan(validation.metric)
