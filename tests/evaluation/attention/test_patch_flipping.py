"""Patch flipping against a model asked again for each bag that is left."""

import math

import numpy as np
import pytest
import torch

from milcore.config import TrainConfig, without_unread
from milcore.evaluation.attention.patch_flipping import REMOVED, STEPS, flip, normalised_entropy
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.model import make_model
from tests.mil.places import places_of


@pytest.mark.parametrize(
    ("pooling", "level"),
    [
        ("gated_attention", "embedding"),
        ("max", "embedding"),
        ("noisy_or", "instance"),
        ("topk", "instance"),
        ("additive", "embedding"),
        ("dsmil", "embedding"),
        ("transmil", "embedding"),
    ],
)
@pytest.mark.parametrize("instances", [57, 20, 10])
def test_each_step_is_the_bag_without_the_blocks_before(pooling: str, level: str, instances: int) -> None:
    torch.manual_seed(0)
    rows, attention = torch.randn(instances, 5), np.random.default_rng(0).permutation(instances) + 1.0
    settings = without_unread({"pooling": pooling, "level": level, "hidden": 8, "transmil_landmarks": 4})
    models = [make_model(TrainConfig(**settings, seed=seed), 5, 2) for seed in (0, 1)]
    for model in models:
        model.encoder.rows_per_chunk = lambda _: 11
    places = places_of(instances)
    flipping = flip(models, Bag("x", "", 0, rows, places), attention, 1, seed=0)
    steps = min(STEPS, instances)
    for order, curve in ((np.argsort(-attention), flipping.most), (np.argsort(attention), flipping.least)):
        for step in range(steps):
            gone = math.ceil(step * instances / steps)
            left = np.sort(order[gone:])
            rest = Bag("", "", 0, rows[left], places[left])
            with torch.no_grad():
                expected = np.mean([m(pack([rest], [0]), None)[0, 1].exp() for m in models])
            assert np.interp(step / steps, REMOVED, curve) == pytest.approx(expected, abs=1e-5)
    assert flipping.most[0] == pytest.approx(flipping.least[0]) == pytest.approx(flipping.random[0])


def test_where_one_instance_decides_its_removal_is_the_whole_area() -> None:
    """Max pooling over one bright instance of 40: gone at the first step of most-first, at the last of least-first."""
    rows = torch.zeros(40, 1)
    rows[17] = 5.0
    model = make_model(TrainConfig(pooling="max", level="instance", hidden=4), 1, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model.classifier.bias.fill_(-6.0)
    attention = np.where(np.arange(40) == 17, 1.0, 0.0)
    flipping = flip([model], Bag("x", "", 0, rows), attention, 1, seed=0)
    assert flipping.most[0] > 0.9
    assert np.all(flipping.most[1:] < 0.2)
    assert np.all(flipping.least > 0.9)
    assert 0.2 < flipping.area < 0.7  # random: the bright one goes half-way on average


@pytest.mark.parametrize(
    ("attention", "expected"),
    [([0.25] * 4, 1.0), ([1.0, 0.0, 0.0], 0.0), ([0.5, 0.5, 0.0, 0.0], 0.5)],
)
def test_normalised_entropy_is_entropy_over_the_largest_possible(attention: list[float], expected: float) -> None:
    assert normalised_entropy(np.array(attention)) == pytest.approx(expected)
    assert math.isnan(normalised_entropy(np.ones(1)))
