"""Stores, runs, sweeps and predictions of earlier versions are read by every command, those of later ones refused."""

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from milcore.cli.main import app
from milcore.config import TrainConfig
from milcore.errors import InputError, MILError, StorageError, StoreError
from milcore.runtime import storage
from milcore.store.store import PatchStore
from milcore.training.run_folder import Run
from milcore.training.sweep import Sweep
from tests.cohorts import rewrite_json
from tests.versions import VERSIONS, unpack

LATEST = VERSIONS[-1]
TRAIN = {"hidden": 2, "attention_hidden": 1, "epochs": 2, "batch_size": 4}
DROPOUT = {"2026-11-22": 0.25, "2026-11-27": 0.5}
CHECKPOINT_EVERY = {"2026-11-22": 5, "2026-11-27": 1}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cohort(version: str, tmp_path: Path) -> Path:
    return unpack(version, tmp_path / "cohort")


def milcore(*words: object) -> dict[str, Any]:
    """What a command says with --json, and in "lines" what it says beside it."""
    shown = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout.splitlines()[-1]) | {"lines": shown.stderr}


def write_settings(cohort: Path, version: str, **changed: object) -> Path:
    settings = TRAIN | {"dropout": DROPOUT[version], "checkpoint_every": CHECKPOINT_EVERY[version]} | changed
    (cohort / "train.json").write_text(json.dumps(settings))
    return cohort / "train.json"


def test_store_and_run_are_described(cohort: Path) -> None:
    assert milcore("info", cohort / "store")["patches"] == 48
    described = milcore("info", cohort / "run")
    assert described["finished"]
    assert described["train"]["encoder"] == "linear"


def test_slides_and_features_are_left_as_they_are(cohort: Path) -> None:
    before = {path: path.read_bytes() for path in (cohort / "store/slides").rglob("*") if path.is_file()}
    milcore("ingest", cohort / "manifest.csv", cohort / "store", "--patch-size", 32)
    milcore("encode", cohort / "store")
    assert {path: path.read_bytes() for path in (cohort / "store/slides").rglob("*") if path.is_file()} == before


def test_a_run_is_evaluated_as_it_was(cohort: Path) -> None:
    run = Run(str(cohort / "run"))
    before = storage.read_table(run.predictions_uri).to_pylist()
    milcore("evaluate", run.uri, "--no-baselines", "--attention", "parquet")
    after = storage.read_table(run.predictions_uri).to_pylist()
    assert [row["slide_id"] for row in after] == [row["slide_id"] for row in before]
    assert [row["probability"] for row in after] == pytest.approx([row["probability"] for row in before], abs=1e-5)


def test_a_run_without_its_slides_settings_is_told_how_to_get_them_and_then_predicts(
    cohort: Path, version: str
) -> None:
    """Training again with the same options adds them and trains nothing."""
    run = cohort / "run"
    with pytest.raises(InputError, match=rf"run `milcore train {cohort}/store {run}` with the options it was"):
        milcore("predict", run, cohort / "s1.tiff", cohort / "out")
    model = (run / "model.safetensors").read_bytes()
    milcore("train", cohort / "store", run, "--config", write_settings(cohort, version))
    assert (run / "model.safetensors").read_bytes() == model
    assert milcore("predict", run, cohort / "s1.tiff", cohort / "out")["ok"] == ["s1"]
    milcore("evaluate", run, "--no-baselines", "--attention", "parquet")
    (row,) = milcore("predict", run, cohort / "s1.tiff", cohort / "out")["slides"]
    assert row["called"] in ("0", "1")
    known = {each["slide_id"]: each for each in storage.read_table(str(run / "predictions.parquet")).to_pylist()}
    # the features of then are float16 that another processor computed
    assert row["probability"] == pytest.approx(known["s1"]["probability"], abs=1e-4)


def test_a_run_whose_config_could_not_be_written_gains_its_settings_later(tmp_path: Path) -> None:
    """Its records are smaller than the limit of a file's size, its ``config.json`` is not."""
    cohort = unpack(LATEST, tmp_path / "cohort")
    words = ("train", cohort / "store", cohort / "run", "--config", write_settings(cohort, LATEST))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(StorageError, match=r"config\.json: OSError: .*File too large"):
            milcore(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    milcore(*words)
    assert milcore("info", cohort / "run")["finished"]


def test_other_settings_are_refused_and_nothing_is_added(cohort: Path, version: str) -> None:
    before = (cohort / "run/config.json").read_text()
    with pytest.raises(InputError, match=r"\(train\.hidden was 2, now 3\)"):
        milcore("train", cohort / "store", cohort / "run", "--config", write_settings(cohort, version, hidden=3))
    assert (cohort / "run/config.json").read_text() == before


def test_an_unfinished_run_is_resumed_to_the_same_model(tmp_path: Path) -> None:
    cohort = unpack(LATEST, tmp_path / "cohort")
    shutil.copytree(cohort / "run", cohort / "begun")
    for name in ("model.safetensors", "history.parquet", "metrics.json"):
        (cohort / "begun" / name).unlink()
    milcore("train", cohort / "store", cohort / "begun", "--config", write_settings(cohort, LATEST))
    torch.testing.assert_close(
        load_file(cohort / "begun/model.safetensors"), load_file(cohort / "run/model.safetensors"), rtol=1e-4, atol=1e-6
    )


def test_folds_are_evaluated_and_predict(tmp_path: Path) -> None:
    cohort = unpack(LATEST, tmp_path / "cohort")
    milcore("evaluate", cohort / "folds", "--no-baselines", "--attention", "parquet")
    milcore("train", cohort / "store", cohort / "folds", "--folds", 2, "--config", write_settings(cohort, LATEST))
    (row,) = milcore("predict", cohort / "folds", cohort / "s1.tiff", cohort / "out")["slides"]
    assert row["status"] == "ok"
    assert row["spread"] is not None


@pytest.mark.cluster
def test_a_finished_sweep_is_left_and_its_best_settings_train(cohort: Path, version: str) -> None:
    poolings = "mean,gated_attention" if version == LATEST else "gated_attention"
    options = ("--trials", 2, "--pooling", poolings, "--workers", 1)
    before = (cohort / "sweep/best.json").read_bytes()
    milcore("tune", cohort / "store", cohort / "sweep", "--config", write_settings(cohort, version), *options)
    assert (cohort / "sweep/best.json").read_bytes() == before
    splits = ("--splits", cohort / "sweep/splits.parquet")
    milcore("train", cohort / "store", cohort / "best", "--config", cohort / "sweep/best.json", *splits)
    assert Run(str(cohort / "best")).spec().train == Sweep(str(cohort / "sweep")).best()


@pytest.mark.cluster
def test_an_unfinished_sweep_ends_with_the_same_best_settings(tmp_path: Path) -> None:
    cohort = unpack(LATEST, tmp_path / "cohort")
    before = json.loads((cohort / "sweep/best.json").read_bytes())
    for name in ("best.json", "trials.parquet", "verdict.json"):
        (cohort / "sweep" / name).unlink()
    options = ("--trials", 2, "--pooling", "mean,gated_attention", "--workers", 1)
    milcore("tune", cohort / "store", cohort / "sweep", "--config", write_settings(cohort, LATEST), *options)
    best = json.loads((cohort / "sweep/best.json").read_bytes())
    settings = TrainConfig().model_dump(mode="json")
    assert best == {name: settings[name] for name in best.keys() - before.keys()} | before  # settings since


def test_predictions_of_an_earlier_version_are_made_again_not_believed(tmp_path: Path) -> None:
    """Nothing says by which settings they were made; those that are not named are left out with a line."""
    cohort = unpack(LATEST, tmp_path / "cohort")
    milcore("train", cohort / "store", cohort / "run", "--config", write_settings(cohort, LATEST))
    record = cohort / "predictions/slides/s1.json"
    changed = json.loads(record.read_text()) | {"members": [[0.125, 0.875]]}
    record.write_text(json.dumps(changed))
    lines = milcore("predict", cohort / "run", cohort / "s2.tiff", cohort / "predictions")["lines"]
    assert "1 slides predicted by an earlier version or with other settings (s1" in lines
    assert [row["slide_id"] for row in storage.read_json(str(cohort / "predictions/predictions.json"))["slides"]] == [
        "s2"
    ]
    milcore("predict", cohort / "run", cohort / "s1.tiff", cohort / "predictions")
    rows = storage.read_json(str(cohort / "predictions/predictions.json"))["slides"]
    assert [row["slide_id"] for row in rows] == ["s1", "s2"]
    assert rows[0]["probability"] != pytest.approx(0.875, abs=0.01)


@pytest.mark.parametrize("folder", ["run", "sweep", "predictions"])
def test_a_folder_of_a_newer_schema_is_refused(folder: str, tmp_path: Path) -> None:
    cohort = unpack(LATEST, tmp_path / "cohort")
    milcore("train", cohort / "store", cohort / "run", "--config", write_settings(cohort, LATEST))
    config = cohort / folder / "config.json"
    newer = {"schema_version": 99, "milcore_version": "9.0", "unheard_of": 1}
    rewrite_json(str(config), newer)
    commands = {
        "run": [["info", config.parent], ["evaluate", config.parent],
                ["predict", config.parent, cohort / "s1.tiff", cohort / "out"],
                ["train", cohort / "store", config.parent, "--config", write_settings(cohort, LATEST)]],
        "sweep": [["tune", cohort / "store", config.parent, "--config", write_settings(cohort, LATEST)]],
        "predictions": [["predict", cohort / "run", cohort / "s1.tiff", config.parent]],
    }  # fmt: skip
    for command in commands[folder]:
        with pytest.raises(
            MILError, match=r"schema_version: expected at most \d, got 99; .*the milcore that wrote it \(9\.0\)"
        ):
            milcore(*command)


def test_a_run_records_nothing_where_the_store_holds_other_instances(tmp_path: Path) -> None:
    cohort = unpack(LATEST, tmp_path / "cohort")
    milcore("ingest", cohort / "manifest.csv", cohort / "store", "--patch-size", 64)
    milcore("encode", cohort / "store")
    with pytest.raises(InputError, match="instance_digest was"):
        milcore("train", cohort / "store", cohort / "run", "--config", write_settings(cohort, LATEST))
    with pytest.raises(InputError, match="records how its slides were ingested"):
        milcore("predict", cohort / "run", cohort / "s1.tiff", cohort / "out")
    with pytest.raises(StoreError, match="expected the instances that"):
        milcore("evaluate", cohort / "run")
    assert PatchStore(str(cohort / "store")).slide("s0").patch_size == 64
