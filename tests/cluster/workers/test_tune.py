"""A sweep on Ray ends with all its trials, the best of them, and nothing else; killed, it goes on."""

from pathlib import Path

import pytest

from milcore.cluster.launch import tune_with
from milcore.cluster.workers.tune import _tuner, gpu_share
from milcore.config import LaunchConfig, SplitConfig, TrainConfig, TuneConfig
from milcore.errors import ClusterError, InputError
from milcore.runtime import storage
from milcore.training.search_space import trial_configs
from milcore.training.sweep import Sweep, prepare_sweep
from tests.cohorts import write_features, write_store

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=4, batch_size=4, checkpoint_every=1)
SWEEP = TuneConfig(poolings=("max", "mean", "attention"), trials=4, train=TRAIN)
TWO = LaunchConfig(workers=2)


def prepared(folder_uri: str, config: TuneConfig) -> str:
    store, out = storage.join(folder_uri, "store"), storage.join(folder_uri, "out")
    write_features(write_store(store))
    prepare_sweep(store, out, config, SplitConfig())
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
        "files.json",
        "splits.parquet",
        "trials.parquet",
        "verdict.json",
    ]
    assert tune_with(out, LaunchConfig(ray_address="127.0.0.1:1")) == best


def test_a_sweep_over_folds_scores_by_their_mean_and_says_its_error(local_ray: None, tmp_path: Path) -> None:
    """As many trials at a time as the cluster has room for; another setting is drawn. One trial had ended when an
    earlier attempt was killed, before Tune had written anything of it."""
    folds = {"objective_folds": 2, "trials": 3, "search": ("hidden=4,8",)}
    out = prepared(str(tmp_path), SWEEP.model_copy(update=folds))
    known = {"score": 0.25, "val_loss": 0.5, "val_auroc": 0.25, "val_auroc_se": 0.125, "epochs": 3}
    storage.write_json(storage.join(out, "finished", "1.json"), known)
    tune_with(out, LaunchConfig())
    rows = trials_of(out)
    assert {name: rows[1][name] for name in known.keys() - {"score"}}.items() <= known.items()
    assert all(row["val_auroc_se"] >= 0.0 or row["epochs"] for row in rows)
    assert any(row["val_auroc_se"] >= 0.0 for row in (rows[0], rows[2]))
    assert [row["hidden"] for row in rows] == [trial.hidden for trial in trial_configs(Sweep(out).spec().tune)]


def test_a_sweep_killed_before_its_first_snapshot_goes_on(local_ray: None, tmp_path: Path) -> None:
    """Ray has written what the sweep is, and nothing of its trials."""
    out = prepared(str(tmp_path), SWEEP.model_copy(update={"trials": 2}))
    _tuner(out, Sweep(out).spec(), TWO)
    tune_with(out, TWO)
    assert [row["state"] for row in trials_of(out)] == ["ok", "ok"]


def test_trials_that_cannot_learn_are_reported_with_their_reason(local_ray: None, tmp_path: Path) -> None:
    rates = {"learning_rate_min": 1e30, "learning_rate_max": 1e30, "trials": 1}
    out = prepared(str(tmp_path), SWEEP.model_copy(update=rates))
    with pytest.raises(ClusterError, match=r"all 1 trials failed; the first: .*the training loss is"):
        tune_with(out, TWO)


@pytest.mark.parametrize(
    ("trials", "gpus", "share"), [(4, 1, 0.25), (3, 2, 0.5), (2, 2, 1.0), (1, 4, 1.0), (0, 1, 1.0), (4, 0, 1.0)]
)
def test_trials_share_gpus_evenly_and_none_lies_on_two(trials: int, gpus: int, share: float) -> None:
    assert gpu_share(trials, gpus) == share


def test_a_folder_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run milcore tune first"):
        tune_with(str(tmp_path), TWO)


def test_a_snapshot_of_another_version_costs_unfinished_trials_only(
    local_ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray's pickle names modules, which may have been renamed since."""
    out = prepared(str(tmp_path), SWEEP.model_copy(update={"trials": 2}))
    known = {"score": 0.25, "val_loss": 0.5, "val_auroc": 0.25, "val_auroc_se": 0.125, "epochs": 3}
    storage.write_json(storage.join(out, "finished", "0.json"), known)
    storage.write_bytes(storage.join(out, "trials", "tuner.pkl"), b"cmilcore.of.before\nTrials\n.")
    tune_with(out, LaunchConfig(workers=1))
    assert "the snapshot of the sweep is of another version" in capfd.readouterr().err
    assert trials_of(out)[0]["val_loss"] == known["val_loss"]
    assert trials_of(out)[1]["state"] == "ok"
