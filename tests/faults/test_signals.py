"""SIGTERM and Ctrl-C end Ray on this machine and the steps of a pipeline along with the command."""

import signal
import sys
from pathlib import Path

import pytest

from milcore.runtime import storage
from tests.cli.test_signals import MILCORE, Command
from tests.cohorts import write_features, write_store
from tests.pipeline.test_run import write_cohort

SIGNALS = pytest.mark.parametrize(("signum", "group"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
LONG = ("--features", "mean_rgb", "--epochs", "100000", "--patience", "100000", "--hidden", "8")


@SIGNALS
@pytest.mark.parametrize("step", ["encode", "train", "tune"])
def test_ray_on_this_machine_ends_with_the_command(
    step: str, signum: signal.Signals, group: bool, tmp_path: Path
) -> None:
    store, out = str(tmp_path / "store"), str(tmp_path / "out")
    write_features(write_store(store, slides=48, patches=100))
    here = ("--workers", "2", "--ray-address", "local")
    words = {
        "encode": (store, "--encoder", "efficientnet_lite0"),
        "train": (store, out, *LONG, "--checkpoint-every", "1"),
        "tune": (store, out, *LONG),
    }[step]
    command = Command(MILCORE, step, *words, *here, folder=tmp_path)
    in_work = {
        "encode": lambda: "encode: " in command.log.read_text(),
        "train": lambda: any(name.isdigit() for name in storage.names(f"{out}/checkpoints")),
        "tune": lambda: storage.names(f"{out}/trials") != [],
    }
    command.wait_until(in_work[step])
    command.send(signum, group=group)
    command.check_end(signum)


@SIGNALS
def test_the_steps_of_a_pipeline_end_with_it(signum: signal.Signals, group: bool, tmp_path: Path) -> None:
    manifest = write_cohort(str(tmp_path / "cohort"), tmp_path)
    words = ["--manifest", manifest, "--store-uri", str(tmp_path / "store"), "--run-uri", str(tmp_path / "run")]
    command = Command(sys.executable, "-m", "pipeline", "run", *words, folder=tmp_path)
    command.wait_until(lambda: storage.exists(str(tmp_path / "store" / "manifest.parquet")))
    command.send(signum, group=group)
    command.check_end(signum, "pipeline")
    assert not storage.exists(str(tmp_path / "run" / "config.json"))


def test_the_steps_of_a_pipeline_end_when_it_is_killed(tmp_path: Path) -> None:
    manifest = write_cohort(str(tmp_path / "cohort"), tmp_path)
    words = ["--manifest", manifest, "--store-uri", str(tmp_path / "store"), "--run-uri", str(tmp_path / "run")]
    command = Command(sys.executable, "-m", "pipeline", "run", *words, folder=tmp_path)
    command.wait_until(lambda: storage.exists(str(tmp_path / "store" / "manifest.parquet")))
    command.send(signal.SIGKILL)
    command.process.wait()
    command.check_none_is_left()
