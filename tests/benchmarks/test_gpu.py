"""The GPU benchmark: its checks find a wrong number, and on a GPU none is wrong."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import correctness as checks
from benchmarks.gpu import training
from benchmarks.gpu.row import Row, at_least, markdown
from milcore.config import TrainConfig
from milcore.training.context import LocalContext

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CONFIG = TrainConfig(pooling="gated_attention", hidden=32, attention_hidden=16, dropout=checks.DROPOUT)


def test_fp32_is_near_fp64_packed_and_streamed_and_another_rate_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = checks.learn(CONFIG.model_copy(update={"precision": "fp64"}), CPU, streamed=False)

    def row() -> Row:
        seen = [checks.learn(CONFIG, CPU, streamed=streamed) for streamed in (False, True)]
        return checks.deviation_row("p", "c", seen, expected, "fp32")

    assert row().reached is True
    monkeypatch.setattr(checks, "RATE", checks.RATE * 1.002)
    assert row().reached is False


def test_training_on_a_device_is_near_fp64_and_of_other_bags_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CONFIG", training.CONFIG.model_copy(update={"epochs": 4}))
    expected = training.learn("fp64", LocalContext(None, CPU))
    assert checks.deviation_row("p", "c", [training.learn("fp32", LocalContext(None, CPU))], expected, "fp32").reached
    monkeypatch.setattr(training, "BAGS", training.BAGS - 1)
    other = training.learn("fp32", LocalContext(None, CPU))
    assert not checks.deviation_row("p", "c", [other], expected, "fp32").reached


def test_a_table_says_what_was_reached_and_what_was_not() -> None:
    lines = markdown([at_least("pooling", "share", 0.5, 0.6), Row("pooling", "case", "", note="not run: no GPU")])
    assert lines.splitlines()[2:] == [
        "| pooling | share | 0.50 | >= 0.60 | no |  |",
        "| pooling | case |  |  |  | not run: no GPU |",
    ]


def test_a_package_that_is_missing_is_one_line() -> None:
    command = [sys.executable, "-S", "-m", "benchmarks.gpu"]  # without site-packages
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={})
    assert done.returncode == 1
    assert done.stderr == "gpu: needs the package torch; install it, or name another interpreter by PYTHON=\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("part", [checks.correctness, training.training])
def test_no_number_of_a_gpu_is_wrong(part: Callable[[torch.device], Iterator[Row]]) -> None:
    assert [row for row in part(torch.device("cuda")) if row.reached is False] == []
