"""Survival from a manifest to predictions: command line, Python, folds, and manifests that cannot be trained on."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

import milcore as mc
from milcore.cli.main import app
from milcore.config import PipelineSettings
from milcore.errors import InputError, StoreError
from tests.test_api import write_slide

PATIENTS, SLIDES = 20, 24
COLUMNS = {"target": "survival_cox", "time": "os_days", "event": "os_event"}
SMALL = {"encoder": "conv", "hidden": 8, "attention_hidden": 4, "epochs": 2, "learning_rate": 0.01}
FLAGS = ["--time", "os_days", "--event", "os_event", "--features", "f"]


def patient(slide: int) -> str:
    """The last four slides are of the first four patients."""
    return f"P{slide % PATIENTS:02d}"


def follow_up(slide: int) -> dict[str, object]:
    """Slides of odd number, which are paler, die sooner; every fourth is censored, the sixth has no follow-up."""
    number = slide % PATIENTS
    if number == 5:
        return {"os_days": "NA", "os_event": ""}
    return {"os_days": 100.5 + number - 60 * (number % 2), "os_event": int(number % 4 != 2)}


def write_manifest(path: Path, change: Callable[[int], dict[str, object]] = follow_up) -> str:
    rows = [
        {"slide_id": f"S{k:02d}", "uri": f"S{k:02d}.tiff", "patient_id": patient(k), **change(k)} for k in range(SLIDES)
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of 20 patients, ingested from a manifest without label and without follow-up."""
    folder = tmp_path_factory.mktemp("survival")
    for k in range(SLIDES):
        write_slide(folder / f"S{k:02d}.tiff", k % PATIENTS)
    write_slide(folder / "new.tiff", 101)
    mc.ingest(write_manifest(folder / "slides.csv", lambda _: {}), folder / "store", mpp=0.5, patch_size=128, workers=0)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> str:
    """The store, ingested again with the columns of follow-up."""
    groups = {path: path.stat().st_mtime_ns for path in (folder / "store").rglob("*") if "slides/" in str(path)}
    report = mc.ingest(write_manifest(folder / "follow_up.csv"), folder / "store", mpp=0.5, patch_size=128, workers=0)
    assert report.skipped == SLIDES
    assert groups
    assert groups == {path: path.stat().st_mtime_ns for path in groups}
    return str(folder / "store")


@pytest.fixture(scope="module")
def run(store: str, folder: Path) -> mc.Run:
    return mc.train(store, folder / "run", config=mc.TrainConfig(**COLUMNS, **SMALL), test_fraction=0.2)


def test_columns_added_to_a_manifest_touch_no_slide_and_are_kept(store: str) -> None:
    manifest = mc.PatchStore(store).manifest()
    assert manifest.classes == ()
    assert manifest.columns["os_event"][:6] == ("1", "1", "0", "1", "1", "")
    assert manifest.columns["os_days"][5] == "NA"


def test_splits_hold_follow_up_of_patients_and_leave_out_those_without(run: mc.Run) -> None:
    """19 patients of 23 slides: 4 are censored. A fifth of each stratum is tested, of at least one patient."""
    rows = run.splits().to_pylist()
    assert list(rows[0]) == ["slide_id", "patient_id", "time", "event", "split", "site", "split_by"]
    assert len({row["patient_id"] for row in rows}) == PATIENTS - 1
    assert len(rows) == SLIDES - 1
    assert {row["event"] for row in rows if row["split"] == "test"} == {0, 1}
    of_patient = {row["patient_id"]: row["time"] for row in rows}
    assert (of_patient["P00"], of_patient["P01"]) == (100.5, 41.5)


def test_the_run_records_its_target_and_ranks_by_concordance(run: mc.Run) -> None:
    spec = run.spec()
    assert (spec.train.target, spec.train.bag, spec.classes) == ("survival_cox", "patient", ())
    assert {"loss", "harrell_c"} <= set(run.history().column("metric").to_pylist())
    with safe_open(run.model_uri, "np") as file:
        assert file.metadata()["target"] == "survival_cox"


def test_a_prediction_is_one_risk_of_a_patient_relative_to_the_training_mean(run: mc.Run, folder: Path) -> None:
    manifest = folder / "patients.csv"
    rows = [f"S{k:02d},S{k:02d}.tiff,{patient(k)}" for k in range(SLIDES)]
    manifest.write_text("\n".join(["slide_id,uri,patient_id", *rows, "new,new.tiff,P99"]) + "\n")
    ended = CliRunner().invoke(
        app,
        [
            "predict",
            run.uri,
            str(folder / "predictions"),
            "--manifest",
            str(manifest),
            "--attention",
            "parquet",
            "--json",
        ],
    )
    assert ended.exit_code == 0, ended.output
    summary = json.loads(ended.stdout.strip().splitlines()[-1])
    assert (summary["target"], summary["time"], summary["event"]) == ("survival_cox", "os_days", "os_event")
    with (folder / "predictions" / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["slide_id", "patient_id", "uri", "status", "risk", "spread", "patches", "reason"]
    risk_of: dict[str, set[str]] = {}
    for row in table:
        risk_of.setdefault(row["patient_id"], set()).add(row["risk"])
    assert all(len(risks) == 1 for risks in risk_of.values())
    training = {row["patient_id"] for row in run.splits().to_pylist() if row["split"] == "train"}
    assert np.mean([float(*risk_of[name]) for name in training]) == pytest.approx(0.0, abs=1e-5)
    predictions = mc.predict(run, folder / "new.tiff")
    assert predictions["new"].risk == pytest.approx(float(*risk_of["P99"]), abs=1e-6)
    assert predictions["new"].probabilities == {}
    assert "risk" in predictions._repr_html_()


def test_folds_leave_every_patient_out_once(store: str, folder: Path) -> None:
    run = mc.train(store, folder / "folds", **COLUMNS, **SMALL, folds=2, test_fraction=0.0, val_fraction=0.2)
    out_of_fold = run.out_of_fold()
    assert out_of_fold is not None
    assert (out_of_fold.slides, out_of_fold.target) == (PATIENTS - 1, "survival_cox")
    assert out_of_fold.line.startswith("2 models; pooled Harrell's C of the patients left out 0.")
    predictions = run.predictions()
    assert predictions.column_names == ["slide_id", "patient_id", "time", "event", "split", "fold", "risk"]
    assert len(set(predictions["patient_id"].to_pylist())) == PATIENTS - 1


@pytest.fixture(scope="module")
def hazards(store: str, folder: Path) -> mc.Run:
    settings = COLUMNS | SMALL | {"target": "survival_hazard", "hazard_intervals": 3}
    return mc.train(store, folder / "hazards", **settings, folds=2, test_fraction=0.2, val_fraction=0.2)


def test_hazards_are_predicted_with_survival_at_the_mean_cut_points_of_the_folds(hazards: mc.Run, folder: Path) -> None:
    """Each fold has cut points of its own: quantiles of the event times of its training patients."""
    cut_points = []
    for fold in range(2):
        rows = hazards.fold(fold).splits().to_pylist()
        times = sorted(
            {row["patient_id"]: row["time"] for row in rows if row["split"] == "train" and row["event"]}.values()
        )
        with safe_open(hazards.fold(fold).model_uri, "np") as file:
            cut_points.append(file.get_tensor("cut_points"))
            assert file.metadata()["target"] == "survival_hazard"
        np.testing.assert_array_equal(cut_points[-1], [times[-(-k * len(times) // 3) - 1] for k in (1, 2, 3)])
    predictions = mc.predict(hazards, folder / "new.tiff", folder / "of_hazards")
    survival, risk = predictions["new"].survival, predictions["new"].risk
    np.testing.assert_allclose(list(survival), np.mean(cut_points, axis=0))
    assert 1.0 > survival[min(survival)] > survival[max(survival)] > 0.0
    assert risk is not None
    assert -3.0 < risk < 0.0
    with (folder / "of_hazards" / "predictions.csv").open() as file:
        header, row = list(csv.reader(file))
    assert header[4:-2] == ["risk", "spread", *(f"survival_at_{time:g}" for time in survival)]
    assert [float(cell) for cell in row[6:-2]] == pytest.approx(list(survival.values()))
    assert "risk" in predictions._repr_html_()


def test_folds_of_hazards_pool_the_risks_of_patients_left_out(hazards: mc.Run) -> None:
    assert hazards.predictions().column_names[-1] == "risk"
    out_of_fold = hazards.out_of_fold()
    assert out_of_fold is not None
    assert out_of_fold.target == "survival_hazard"
    assert out_of_fold.line.startswith("2 models; pooled Harrell's C of the patients left out ")


@pytest.mark.parametrize("folds", ["0", "2"])
def test_more_intervals_than_times_of_events_are_one_line(folds: str, store: str, tmp_path: Path) -> None:
    """Without folds 13 patients of 19 are trained on."""
    flags = ["--target", "survival_hazard", "--hazard-intervals", "14", "--folds", folds, *FLAGS]
    ended = CliRunner().invoke(app, ["train", store, str(tmp_path / "run"), *flags])
    assert isinstance(ended.exception, InputError)
    assert ended.exception.line.startswith(
        "hazard_intervals: expected 14 intervals that end at different times of events"
    )
    assert ended.exception.exit_code == 2
    assert not (tmp_path / "run").exists()


def problem(change: Callable[[int, dict[str, object]], dict[str, object]]) -> Callable[[int], dict[str, object]]:
    return lambda slide: change(slide, follow_up(slide))


BAD = {
    "a negative time": (
        problem(lambda k, row: row | ({"os_days": -3} if k == 1 else {})),
        "expected one follow-up per patient, got 1 problem(s): slide S01: time '-3'; allowed: a time above 0",
    ),
    "a time of 0": (problem(lambda k, row: row | ({"os_days": 0} if k == 1 else {})), "slide S01: time '0'"),
    "an infinite time": (problem(lambda k, row: row | ({"os_days": "inf"} if k == 1 else {})), "slide S01: time 'inf'"),
    "a time in words": (problem(lambda k, row: row | ({"os_days": "2 y"} if k == 1 else {})), "slide S01: time '2 y'"),
    "a time with a comma": (
        problem(lambda k, row: row | ({"os_days": "1,095"} if k == 1 else {})),
        "slide S01: time '1,095', whose comma may part thousands or decimals; allowed: a time above 0",
    ),
    "an event of 2": (problem(lambda k, row: row | ({"os_event": 2} if k == 1 else {})), "slide S01: event '2'"),
    "all censored": (
        problem(lambda _, row: row | {"os_event": 0}),
        "manifest column os_event: expected patients with an event, got none of 19",
    ),
    "no column of events": (
        problem(lambda _, row: {"os_days": row["os_days"], "grade": 2}),
        "os_event: expected a column of the store's manifest, got none of that name; allowed: os_days, grade; add it",
    ),
    "slides that disagree": (
        problem(lambda k, row: row | {"os_days": 9.0 + k}),
        "patient P00: os_days 9 and 29",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_manifest_that_cannot_be_trained_on_is_one_line(case: str, store: str, folder: Path, tmp_path: Path) -> None:
    change, line = BAD[case]
    try:
        mc.ingest(write_manifest(folder / "bad.csv", change), store, mpp=0.5, patch_size=128, workers=0)
        ended = CliRunner().invoke(app, ["train", store, str(tmp_path / "run"), "--target", "survival_cox", *FLAGS])
    finally:
        mc.ingest(folder / "follow_up.csv", store, mpp=0.5, patch_size=128, workers=0)
    assert isinstance(ended.exception, InputError)
    assert line in ended.exception.line
    assert ended.exception.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (COLUMNS | {"bag": "slide"}, "bag: expected patient where patients have several slides with a survival target"),
        ({}, "manifest column label: expected the class of every slide, got no such column"),
        ({"time": "os_days"}, "time: expected none with target classification"),
        (
            {"target": "survival_cox", "time": "os_days"},
            "event: expected a column of the manifest with target",
        ),
        (
            COLUMNS | {"class_balance": "weighted"},
            "class_balance: expected none with target survival_cox, got",
        ),
        (COLUMNS | {"label_smoothing": 0.1}, "label_smoothing: expected 0.0 with target survival_cox, got 0.1"),
        (COLUMNS | {"batch_size": 1}, "batch_size: expected bags to compare with each other with target survival_cox"),
        (
            COLUMNS | {"pooling": "topk"},
            "pooling: expected a pooling that serves target survival_cox, got topk; allowed: max, mean, lse, gem",
        ),
        (COLUMNS | {"target": "survival_hazard", "hazard_intervals": 1}, "hazard_intervals: "),
        (
            COLUMNS | {"target": "survival_hazard", "pooling": "noisy_or"},
            "pooling: expected a pooling that serves target survival_hazard, got noisy_or",
        ),
        (COLUMNS | {"level": "instance"}, "level: expected embedding with target survival_cox, got instance"),
    ],
)
def test_settings_that_do_not_go_with_survival_are_one_line(
    settings: dict[str, object], line: str, store: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as raised:
        mc.train(store, tmp_path / "run", **{"encoder": "conv", **settings})  # type: ignore[arg-type]
    assert line in raised.value.line


def test_a_run_whose_follow_up_has_changed_is_refused(run: mc.Run, store: str, folder: Path) -> None:
    later = write_manifest(
        folder / "later.csv", lambda k: follow_up(k) | ({"os_days": 500} if k % PATIENTS == 1 else {})
    )
    try:
        mc.ingest(later, store, mpp=0.5, patch_size=128, workers=0)
        with pytest.raises(InputError, match=r"slide S01 was time 41\.5, event 1, is time 500, event 1"):
            mc.train(store, run.uri, **COLUMNS, **SMALL, test_fraction=0.2)
    finally:
        mc.ingest(folder / "follow_up.csv", store, mpp=0.5, patch_size=128, workers=0)


def test_a_run_is_evaluated_by_its_own_follow_up_where_the_manifest_has_none_any_more(
    run: mc.Run, store: str, folder: Path
) -> None:
    try:
        mc.ingest(write_manifest(folder / "none.csv", lambda _: {}), store, mpp=0.5, patch_size=128, workers=0)
        with pytest.raises(StoreError, match=r"manifest column os_days: expected a column.*allowed: --labels-from run"):
            mc.evaluate(run)
        assert "harrell_c" in mc.evaluate(run, labels_from="run", baselines=False).metrics
    finally:
        mc.ingest(folder / "follow_up.csv", store, mpp=0.5, patch_size=128, workers=0)


def test_a_pipeline_takes_patients_for_bags_unless_told_otherwise() -> None:
    parameters = {**COLUMNS, "bag": "slide", "epochs": 3}
    assert PipelineSettings(parameters, "").train.bag == "patient"
    assert PipelineSettings(parameters, '{"train": {"bag": "slide"}}').train.bag == "slide"
    hazards = PipelineSettings(parameters | {"target": "survival_hazard"}, '{"train": {"hazard_intervals": 3}}').train
    assert (hazards.target, hazards.hazard_intervals, hazards.bag) == ("survival_hazard", 3, "patient")
    assert PipelineSettings({"target": "classification", "time": "", "event": ""}, "").train == mc.TrainConfig()
