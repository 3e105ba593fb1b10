"""A sweep on Ray ends with all its trials, the best of them, and nothing else; killed, it goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from milcore import storage
from milcore.cluster.launch import tune_with
from milcore.config import LaunchConfig, SplitConfig, TrainConfig, TuneConfig
from milcore.errors import ClusterError, InputError
from milcore.sweep import prepare_sweep, read_sweep, trial_configs
from tests.cohorts import write_features, write_store

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=4, batch_size=4, checkpoint_every=1)
SWEEP = TuneConfig(poolings=("max", "mean", "attention"), trials=4, train=TRAIN)
TWO = LaunchConfig(workers=2)


def prepared(folder_uri: str, config: TuneConfig) -> str:
    store, out = storage.join(folder_uri, "store"), storage.join(folder_uri, "out")
    write_features(write_store(store))
    prepare_sweep(store, out, config, SplitConfig(), None)
    return out


def trials_of(out: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = storage.read_table(storage.join(out, "trials.parquet")).to_pylist()
    return rows


def test_a_sweep_ends_with_all_its_trials_and_the_best_of_them(local_ray: None, tmp_path: Path) -> None:
    out = prepared(str(tmp_path), SWEEP)
    best = tune_with(out, TWO)
    rows = trials_of(out)
    assert [row["pooling"] for row in rows] == ["max", "mean", "attention", "max"]
    assert [row["learning_rate"] for row in rows] == [trial.learning_rate for trial in trial_configs(SWEEP)]
    assert all(row["state"] == "ok" and 1 <= row["epochs"] <= 4 for row in rows)
    assert best == trial_configs(SWEEP)[min(rows, key=lambda row: (-row["val_auroc"], row["val_loss"]))["trial"]]
    assert sorted(path.name for path in Path(out).iterdir()) == [
        "best.json",
        "config.json",
        "splits.parquet",
        "trials.parquet",
        "verdict.json",
    ]
    assert tune_with(out, LaunchConfig(ray_address="127.0.0.1:1")) == best


def test_a_sweep_over_folds_scores_by_their_mean_and_says_its_error(local_ray: None, tmp_path: Path) -> None:
    """As many trials at a time as the cluster has room for; another setting is drawn."""
    folds = {"objective_folds": 2, "trials": 2, "search": ("hidden=4,8",)}
    out = prepared(str(tmp_path), SWEEP.model_copy(update=folds))
    tune_with(out, LaunchConfig())
    rows = trials_of(out)
    assert all(row["val_auroc_se"] >= 0.0 or row["epochs"] for row in rows)
    assert any(row["val_auroc_se"] >= 0.0 for row in rows)
    assert [row["hidden"] for row in rows] == [trial.hidden for trial in trial_configs(read_sweep(out).tune)]


def test_trials_that_cannot_learn_are_reported_with_their_reason(local_ray: None, tmp_path: Path) -> None:
    rates = {"learning_rate_min": 1e30, "learning_rate_max": 1e30, "trials": 1}
    out = prepared(str(tmp_path), SWEEP.model_copy(update=rates))
    with pytest.raises(ClusterError, match=r"all 1 trials failed; the first: .*the training loss is"):
        tune_with(out, TWO)


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_goes_on_on_s3(
    local_ray: None, s3: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = SWEEP.model_copy(update={"trials": 4, "train": TRAIN.model_copy(update={"epochs": 24})})
    out = prepared(storage.join(s3, tmp_path.name), long)
    command = [sys.executable, "-m", "milcore.cluster", "tune", out, "--workers", "1", "--ray-address", "local"]
    often = {**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "0.2"}
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, env=often) as driver:
        assert driver.stderr is not None
        assert any(line.startswith("trial 2/4") for line in driver.stderr)
        time.sleep(0.5)  # for the snapshot
        os.killpg(driver.pid, signal.SIGKILL)
    assert not storage.exists(storage.join(out, "best.json"))
    capfd.readouterr()
    tune_with(out, TWO)
    assert [row["trial"] for row in trials_of(out)] == list(range(4))
    assert 1 <= sum(line.startswith("trial ") for line in capfd.readouterr().err.split("\n")) <= 3


def test_a_folder_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run milcore tune first"):
        tune_with(str(tmp_path), TWO)
