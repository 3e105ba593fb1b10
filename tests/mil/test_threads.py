"""How many threads torch computes on follows from shapes and CPUs."""

import pytest
import torch

from milcore.config import TrainConfig
from milcore.mil.model import make_model
from milcore.mil.threads import torch_threads, useful_threads

LINEAR = TrainConfig(hidden=8, attention_hidden=4)


@pytest.mark.parametrize(
    ("instances", "width", "cpus", "expected"),
    [
        (40, 1024, 16, 1),  # 40,960 values
        (511, 1024, 16, 1),
        (512, 1024, 16, 2),  # 2^19 values are twice 2^18
        (512, 1024, 1, 1),
        (4096, 1024, 64, 16),
        (100_000, 1024, 64, 16),  # a chunk has 4,096 rows
        (100_000, 1024, 4, 4),
    ],
)
def test_features_of_a_chunk_are_shared_by_threads_of_2_to_the_18(
    instances: int, width: int, cpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milcore.mil.threads.cpus", lambda: cpus)
    model = make_model(LINEAR, width, classes=2)
    assert useful_threads(model, torch.zeros(1, width), instances) == expected


@pytest.mark.parametrize(("instances", "expected"), [(40, 1), (112, 2), (10_000, 2)])
def test_pixels_of_a_chunk_are_shared_by_threads_of_2_to_the_17(
    instances: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """28 x 28 x 3 = 2,352 values, 111.5 patches for two threads; a chunk of 167 patches has 392,784, for 2.99."""
    monkeypatch.setattr("milcore.mil.threads.cpus", lambda: 8)
    model = make_model(TrainConfig(encoder="conv", hidden=8, attention_hidden=4), 3, classes=2)
    assert useful_threads(model, torch.zeros(1, 28, 28, 3, dtype=torch.uint8), instances) == expected


def test_threads_are_those_asked_for_at_most_what_torch_had_and_restored() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch_threads(1) as threads:
            assert threads == torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with torch_threads(8) as threads:
            assert threads == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
