"""Memory settings that are not given are shares of what a worker has."""

import pytest

from milcore.config import TrainConfig
from milcore.mil.bags.bags import cache_bytes
from milcore.mil.memory import memory_line, with_memory
from milcore.mil.model import make_model

GB = 1_000_000_000


@pytest.mark.parametrize(
    ("memory", "workers", "cache", "activations"),
    [
        (4 * GB, 1, 1000.0, 500.0),
        (4 * GB, 4, 250.0, 125.0),
        (160 * GB, 1, 40_000.0, 2048.0),  # more would change rounding and gain nothing
    ],
)
def test_shares_are_a_quarter_for_instances_and_an_eighth_for_activations(
    memory: int, workers: int, cache: float, activations: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milcore.mil.memory.memory_bytes", lambda: memory)
    config = with_memory(TrainConfig(), workers)
    assert (config.cache_mb, config.activation_mb) == (cache, activations)


def test_what_is_given_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milcore.mil.memory.memory_bytes", lambda: 4 * GB)
    given = TrainConfig(cache_mb=7.0, activation_mb=9.0)
    assert with_memory(given, 3) == given
    assert cache_bytes(given) == 7_000_000
    assert cache_bytes(TrainConfig()) == GB
    assert make_model(given, 3, classes=2).activation_bytes == 9_000_000
    assert make_model(TrainConfig(), 3, classes=2).activation_bytes == GB // 2


def test_a_line_says_what_a_worker_takes_and_that_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milcore.mil.memory.memory_bytes", lambda: 4 * GB)
    assert memory_line(TrainConfig(), 1) == "memory: cache_mb 1000 and activation_mb 500 of 4,000 MB"
    line = memory_line(TrainConfig(cache_mb=4096.0), 2)
    assert line.startswith(
        "warning: memory: cache_mb 4096 and activation_mb 250 of 2,000 MB for each of 2 workers, which does not fit; "
        "allowed: 1,500 together"
    )
