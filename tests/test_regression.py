"""Regression from a manifest to predictions: command line, Python, folds, and settings that do not go with it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

import milcore as mc
from milcore.cli.main import app
from milcore.config import PipelineSettings
from milcore.errors import InputError
from milcore.slides.write_pyramid import write_pyramid

PATIENTS, SLIDES = 14, 16
COLUMNS = {"target": "regression", "target_column": "age"}
SMALL = {"encoder": "conv", "hidden": 8, "attention_hidden": 4, "epochs": 2, "learning_rate": 0.01}
FLAGS = ["--target", "regression", "--target-column", "age"]


def patient(slide: int) -> str:
    """The last two slides are of the first two patients."""
    return f"P{slide % PATIENTS:02d}"


def age(slide: int) -> str:
    """Slides of odd number, which are paler, have the higher value; the sixth has none."""
    number = slide % PATIENTS
    return "NA" if number == 5 else f"{40.5 + number + 20 * (number % 2)}"


def write_slide(path: Path, seed: int) -> None:
    """Stained noise of 256 x 192 px, paler where the seed is odd."""
    pixels = np.full((192, 256, 3), 244, np.uint8)
    stain = np.array((200, 110 + 30 * (seed % 2), 170))
    pixels[:, :192] = np.clip(np.random.default_rng(seed).normal(stain, 25, (192, 192, 3)), 0, 255)
    write_pyramid(path, pixels, 0.5, 1, quality=90)


def write_manifest(path: Path, changed: dict[int, str] | None = None) -> str:
    rows = [
        {"slide_id": f"S{k:02d}", "uri": f"S{k:02d}.tiff", "patient_id": patient(k), "age": age(k)}
        for k in range(SLIDES)
    ]
    for k, text in (changed or {}).items():
        rows[k]["age"] = text
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regression")
    for k in range(SLIDES):
        write_slide(folder / f"S{k:02d}.tiff", k % PATIENTS)
    write_slide(folder / "new.tiff", 101)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> str:
    mc.ingest(write_manifest(folder / "ages.csv"), folder / "store", mpp=0.5, patch_size=64, workers=0)
    return str(folder / "store")


@pytest.fixture(scope="module")
def run(store: str, folder: Path) -> mc.Run:
    """A run by the command line."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    ended = CliRunner().invoke(app, ["train", store, str(folder / "run"), *FLAGS, *options, "--test-fraction", "0.2"])
    assert ended.exit_code == 0, ended.output
    return mc.Run(str(folder / "run"))


def test_the_run_records_its_target_ranks_by_r2_and_keeps_the_scale_of_training(run: mc.Run) -> None:
    spec = run.spec()
    assert (spec.train.target, spec.train.target_column, spec.train.bag, spec.classes) == (
        "regression", "age", "slide", (),
    )  # fmt: skip
    assert {"loss", "r2"} <= set(run.history().column("metric").to_pylist())
    rows = run.splits().to_pylist()
    assert len(rows) == SLIDES - 1
    training = [row["value"] for row in rows if row["split"] == "train"]
    with safe_open(run.model_uri, "np") as file:
        assert file.metadata()["target"] == "regression"
        np.testing.assert_allclose(file.get_tensor("target_scale"), [np.mean(training), np.std(training)], rtol=1e-12)


def test_a_prediction_is_a_number_in_the_unit_of_the_column(run: mc.Run, folder: Path) -> None:
    out = folder / "predictions"
    ended = CliRunner().invoke(
        app, ["predict", run.uri, str(folder / "new.tiff"), str(folder / "S00.tiff"), str(out), "--attention",
              "parquet", "--json"]
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    summary = json.loads(ended.stdout.strip().splitlines()[-1])
    assert (summary["target"], summary["target_column"]) == ("regression", "age")
    with (out / "predictions.csv").open() as file:
        table = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert list(table["new"]) == [
        "slide_id", "patient_id", "uri", "status", "predicted_value", "spread", "patches", "reason",
    ]  # fmt: skip
    predictions = mc.predict(run, folder / "new.tiff")
    assert predictions["new"].predicted_value == pytest.approx(float(table["new"]["predicted_value"]), abs=1e-5)
    assert 20.0 < float(table["new"]["predicted_value"]) < 100.0
    assert (predictions["new"].probabilities, predictions["new"].predicted) == ({}, None)
    assert f"{predictions['new'].predicted_value:.4g}" in predictions._repr_html_()


def test_folds_have_scales_of_their_own_and_leave_every_slide_out_once(store: str, folder: Path) -> None:
    run = mc.train(store, folder / "folds", **COLUMNS, **SMALL, folds=2, test_fraction=0.0, val_fraction=0.2)
    out_of_fold = run.out_of_fold()
    assert out_of_fold is not None
    assert (out_of_fold.slides, out_of_fold.target) == (SLIDES - 1, "regression")
    assert out_of_fold.line.startswith("2 models; pooled R2 of the bags left out ")
    predictions = run.predictions()
    assert predictions.column_names == ["slide_id", "patient_id", "value", "split", "fold", "predicted_value"]
    assert len(set(predictions["slide_id"].to_pylist())) == SLIDES - 1
    for fold in range(2):
        rows = run.fold(fold).splits().to_pylist()
        training = [row["value"] for row in rows if row["split"] == "train"]
        with safe_open(run.fold(fold).model_uri, "np") as file:
            np.testing.assert_allclose(file.get_tensor("target_scale"), [np.mean(training), np.std(training)])


def test_patients_are_bags_where_their_slides_agree(store: str, folder: Path, tmp_path: Path) -> None:
    run = mc.train(store, tmp_path / "run", **COLUMNS, **SMALL, bag="patient", test_fraction=0.2)
    assert run.is_finished()
    try:
        mc.ingest(write_manifest(folder / "other.csv", {14: "99"}), store, mpp=0.5, patch_size=64, workers=0)
        ended = CliRunner().invoke(app, ["train", store, str(tmp_path / "two"), *FLAGS, "--bag", "patient"])
    finally:
        mc.ingest(folder / "ages.csv", store, mpp=0.5, patch_size=64, workers=0)
    assert isinstance(ended.exception, InputError)
    assert "(patient P00: 40.5 and 99)" in ended.exception.line
    assert ended.exception.exit_code == 2
    assert not (tmp_path / "two").exists()


def test_a_run_whose_values_have_changed_is_refused(run: mc.Run, store: str, folder: Path) -> None:
    try:
        mc.ingest(write_manifest(folder / "later.csv", {1: "70"}), store, mpp=0.5, patch_size=64, workers=0)
        with pytest.raises(InputError, match=r"expected the values that it was made with.*slide S01 was 61\.5, is 70"):
            mc.train(store, run.uri, **COLUMNS, **SMALL, test_fraction=0.2)
    finally:
        mc.ingest(folder / "ages.csv", store, mpp=0.5, patch_size=64, workers=0)


BAD = {
    "an infinite value": ({1: "inf"}, "manifest column age: expected a number, got 1 problem(s): slide S01: 'inf'"),
    "a value with a comma": ({1: "1,095"}, "slide S01: '1,095', whose comma may part thousands or decimals"),
    "a constant": (dict.fromkeys(range(SLIDES), "3"), "manifest column age: expected numbers that differ, got only 3"),
    "no value": (dict.fromkeys(range(SLIDES), ""), "manifest column age: expected numbers that differ, got none in"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_manifest_that_cannot_be_trained_on_is_one_line(case: str, store: str, folder: Path, tmp_path: Path) -> None:
    changed, line = BAD[case]
    try:
        mc.ingest(write_manifest(folder / "bad.csv", changed), store, mpp=0.5, patch_size=64, workers=0)
        ended = CliRunner().invoke(app, ["train", store, str(tmp_path / "run"), *FLAGS])
    finally:
        mc.ingest(folder / "ages.csv", store, mpp=0.5, patch_size=64, workers=0)
    assert isinstance(ended.exception, InputError)
    assert line in ended.exception.line
    assert ended.exception.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"target": "regression"}, "target_column: expected a column of the manifest with target regression, got none"),
        ({"target_column": "age"}, "target_column: expected none with target classification, got 'age'; allowed: with"),
        (
            COLUMNS | {"time": "days"},
            "time: expected none with target regression, got 'days'; allowed: with target sur",
        ),
        (
            {"target": "survival_cox", "time": "t", "event": "e", "target_column": "age"},
            "target_column: expected none with target survival_cox, got 'age'; allowed: with target regression",
        ),
        (COLUMNS | {"target_column": "grade"}, "manifest column grade: expected a column of the store's manifest"),
        (COLUMNS | {"class_balance": "sampled"}, "class_balance: expected none with target regression, got sampled"),
        (COLUMNS | {"label_smoothing": 0.1}, "label_smoothing: expected 0.0 with target regression, got 0.1"),
        (COLUMNS | {"level": "instance", "pooling": "mean"}, "level: expected embedding with target regression, got"),
        (COLUMNS | {"attention_heads": "per_class"}, "attention_heads: expected shared with target regression, got"),
        (COLUMNS | {"pooling": "noisy_or"}, "pooling: expected a pooling that serves target regression, got noisy_or"),
        (
            COLUMNS | {"pooling": "dsmil"},
            "allowed: max, mean, lse, gem, attention, gated_attention, additive, multi_he",
        ),
        ({"huber_delta": 2.0}, "huber_delta: expected the default 1.0 with target classification, which does not read"),
        (COLUMNS | {"hazard_intervals": 3}, "hazard_intervals: expected the default 4 with target regression, which"),
        (COLUMNS | {"huber_delta": 0.0}, "huber_delta: expected greater than 0, got 0.0"),
    ],
)
def test_settings_that_do_not_go_with_regression_are_one_line(
    settings: dict[str, object], line: str, store: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as raised:
        mc.train(store, tmp_path / "run", **{"encoder": "conv", **settings})  # type: ignore[arg-type]
    assert line in raised.value.line


def test_a_pipeline_passes_the_column_and_keeps_slides_for_bags() -> None:
    parameters = {**COLUMNS, "time": "", "event": "", "bag": "slide", "epochs": 3}
    train = PipelineSettings(parameters, '{"train": {"huber_delta": 0.5}}').train
    assert (train.target, train.target_column, train.time, train.bag, train.huber_delta) == (
        "regression", "age", None, "slide", 0.5,
    )  # fmt: skip
