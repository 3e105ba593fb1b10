"""Memory settings that are not given are shares of what a worker has."""

import tempfile
from pathlib import Path

import pytest

from milcore.config import TrainConfig
from milcore.mil.bags.bags import cache_bytes
from milcore.mil.memory import SWEEP_DISK_CACHE_MB, memory_line, sweep_disk_cache_mb, with_memory
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


def test_trials_at_a_time_share_a_cache_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("milcore.mil.memory.is_in_memory", lambda folder: folder != tmp_path)
    assert [sweep_disk_cache_mb(TrainConfig(), trials) for trials in (1, 2)] == [0.0, SWEEP_DISK_CACHE_MB]
    assert [sweep_disk_cache_mb(TrainConfig(disk_cache_mb=mb), 2) for mb in (0.0, 5.0)] == [0.0, 5.0]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path.parent))
    assert sweep_disk_cache_mb(TrainConfig(), 2) == 0.0
