"""A sweep on Ray ends with all its trials, the best of them, and nothing else; killed, it goes on."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from milcore.cluster.launch import tune_with
from milcore.cluster.workers.tune import _run_trial, gpu_share
from milcore.config import LaunchConfig, SplitConfig, TrainConfig, TuneConfig
from milcore.errors import ClusterError, InputError
from milcore.runtime import storage
from milcore.runtime.digest import with_own_digest
from milcore.training.loop import _TimedBatches
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


def test_nothing_of_a_sweep_folder_is_unpickled(local_ray: None, tmp_path: Path) -> None:
    """Trials are resumed from JSON and safetensors; Ray's own snapshot, which lay there before, is a pickle."""
    out = prepared(str(tmp_path), SWEEP.model_copy(update={"trials": 2}))
    known = {"score": 0.25, "val_loss": 0.5, "val_auroc": 0.25, "val_auroc_se": 0.125, "epochs": 3}
    storage.write_json(storage.join(out, "finished", "0.json"), known)
    call = f"cposix\nmkdir\n(V{tmp_path / 'called'}\ntR.".encode()
    for name in ("tuner.pkl", "trainable.pkl", "experiment_state-2026-01-01_00-00-00.json"):
        storage.write_bytes(storage.join(out, "trials", name), call)
    pickle.loads(call)  # noqa: S301 - it is a pickle that acts
    (tmp_path / "called").rmdir()
    tune_with(out, LaunchConfig(workers=1))
    assert not (tmp_path / "called").exists()
    assert trials_of(out)[0]["val_loss"] == known["val_loss"]
    assert trials_of(out)[1]["state"] == "ok"


class Reports:
    """What a trial reports to Ray Tune; one of the reports may be the last thing it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[dict[str, Any]] = []
        self.stop_at = 0
        monkeypatch.setattr("ray.tune.report", self.report)

    def report(self, figures: dict[str, Any]) -> None:
        self.seen.append(figures)
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("folds", [0, 2])
def test_a_trial_that_is_resumed_reports_again_what_it_has_reported(
    folds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after a part of its work, it goes on to the same figures."""
    config = SWEEP.model_copy(update={"trials": 2, "objective_folds": folds})
    reports = Reports(monkeypatch)
    out = prepared(str(tmp_path), config)
    trial = {"trial": 1, "out_uri": out, "device": "cpu", "workers_here": 1}
    _run_trial(trial)
    whole, reports.seen[:] = list(reports.seen), []
    storage.remove_folder(storage.join(out, "trials"))

    reports.stop_at = len(whole) - 1
    with pytest.raises(KeyboardInterrupt):
        _run_trial(trial)
    reports.seen.clear()
    reports.stop_at = 0
    epochs: list[int] = []
    monkeypatch.setattr(
        "milcore.training.loop._TimedBatches", lambda batches: epochs.append(1) or _TimedBatches(batches)
    )
    _run_trial(trial)
    assert repr(reports.seen) == repr(whole)
    assert len(epochs) == (TRAIN.epochs if folds else 1)


def test_a_trial_that_has_ended_reports_every_score_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports(monkeypatch)
    out = prepared(str(tmp_path), SWEEP)
    record = {"score": 0.5, "val_loss": 0.5, "val_auroc": 0.5, "epochs": 3, "scores": [0.25, 0.25, 0.5]}
    storage.write_json(storage.join(out, "finished", "2.json"), with_own_digest(record))
    _run_trial({"trial": 2, "out_uri": out, "device": "cpu", "workers_here": 1})
    assert [seen["score"] for seen in reports.seen] == record["scores"]
    assert {(seen["val_loss"], seen["epochs"]) for seen in reports.seen} == {(0.5, 3)}
