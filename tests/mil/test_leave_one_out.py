"""Leave-one-out against brute force."""

import dataclasses

import pytest
import torch

from milcore.config import POOLING_LEVELS, TrainConfig, without_unread
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.leave_one_out import leave_one_out
from milcore.mil.model import make_model
from milcore.mil.pooling.streaming import ChunkPlan
from tests.mil.places import places_of

ROWS = [(name, level) for name, levels in POOLING_LEVELS.items() for level in levels]


@pytest.mark.parametrize("chunk_rows", [5, 22, 100])
@pytest.mark.parametrize(("pooling", "level", "k"), [*((*row, 10) for row in ROWS), ("topk", "instance", 0.35)])
def test_it_equals_the_bag_without_each_instance(pooling: str, level: str, k: float, chunk_rows: int) -> None:
    """Of a share of 0.35 count 9 of 23 instances, and 8 of 22."""
    torch.manual_seed(0)
    rows = torch.randn(23, 9)
    settings = {"pooling": pooling, "level": level, "hidden": 16, "attention_hidden": 8, "topk_instances": k}
    settings |= {"attention_heads": "per_class", "transmil_landmarks": 4}
    config = TrainConfig(**without_unread(settings))
    model = make_model(config, 9, classes=3)
    places, others = places_of(23, (11, 12)), [[k for k in range(23) if k != i] for i in range(23)]
    without = [Bag(str(i), "", 0, rows[left], places[left]) for i, left in enumerate(others)]
    with torch.no_grad():
        # instances keep their numbers, by which pseudo-bags are drawn
        numbers = torch.tensor(others).flatten()
        expected = model(dataclasses.replace(pack(without, range(23)), position=numbers), None)
    plan = ChunkPlan(chunk_rows, oversized=False, device=torch.device("cpu"))
    torch.testing.assert_close(leave_one_out(model, Bag("x", "", 0, rows, places), plan), expected, atol=1e-5, rtol=0)


def test_the_only_instance_of_a_bag_leaves_nothing_to_say() -> None:
    model = make_model(TrainConfig(hidden=4, attention_hidden=2), 3, classes=2)
    assert leave_one_out(model, Bag("x", "", 0, torch.zeros(1, 3))).isnan().all()
