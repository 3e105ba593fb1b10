"""Evaluation end to end on a small store: every file of the contract, each number where it belongs, no leak."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from milcore import storage
from milcore.artifacts import SUFFIXES
from milcore.config import SplitConfig, TrainConfig
from milcore.errors import InputError, StoreError
from milcore.evaluate import evaluate
from milcore.manifest import Manifest
from milcore.metrics import choose_threshold
from milcore.run import prepare_run, read_splits, train_run
from milcore.store import PatchStore
from milcore.train import LocalContext
from tests.cohorts import PATCH_PX, write_features, write_store

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=12, batch_size=4, learning_rate=0.02)


def annotate(store: PatchStore, folder: Path) -> None:
    """The dark patch of every positive slide, as a square of GeoJSON."""
    x = 2 * PATCH_PX
    ring = [[x, 0], [x + PATCH_PX, 0], [x + PATCH_PX, PATCH_PX], [x, PATCH_PX], [x, 0]]
    (folder / "lesion.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    table = store.manifest().to_table()
    uris = [str(folder / "lesion.geojson") if label else None for label in table["label"].to_pylist()]
    place = table.schema.get_field_index("annotation")
    store.write_manifest(Manifest.from_table(table.set_column(place, table.schema.field(place), pa.array(uris))))


@pytest.fixture(scope="module")
def run_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("evaluate")
    store = write_store(str(folder / "store"), slides=20)
    write_features(store)
    annotate(store, folder)
    run = str(folder / "run")
    prepare_run(store.uri, run, TRAIN, SplitConfig(), None)
    train_run(run, LocalContext(None, torch.device("cpu")))
    return run


@pytest.fixture(scope="module")
def summary(run_uri: str) -> dict[str, object]:
    return evaluate(run_uri)


def test_a_cohort_that_differs_in_one_patch_is_told_apart_and_the_patch_found(summary: dict[str, object]) -> None:
    assert summary["auroc"] == 1.0
    assert summary["localisation_auroc"] == 1.0
    assert summary["localised"] == 3
    names = [row["name"] for row in summary["comparison"]]
    assert names[0] == "gated attention pooling, embedding level"
    assert names[1:] == ["embedding-mean pooling", "slide colour", "patch colour", "shuffled training labels"]


def test_the_run_folder_holds_what_was_returned(run_uri: str, summary: dict[str, object]) -> None:
    assert storage.read_json(f"{run_uri}/metrics.json") == summary
    assert summary["report"] == f"{run_uri}/report.html"
    assert "Research use only" in storage.read_bytes(f"{run_uri}/report.html").decode()
    assert "Research use only" in storage.read_bytes(f"{run_uri}/MODEL_CARD.md").decode()


def test_every_slide_is_predicted_once_and_the_threshold_is_validation_s(
    run_uri: str, summary: dict[str, object]
) -> None:
    table = storage.read_table(f"{run_uri}/predictions.parquet")
    assert table.column_names == ["slide_id", "patient_id", "label", "split", "fold", "probability"]
    rows = table.to_pylist()
    assert [row["slide_id"] for row in rows] == read_splits(run_uri)["slide_id"].to_pylist()
    val = [row for row in rows if row["split"] == "val"]
    labels, probability = np.array([r["label"] for r in val]), np.array([r["probability"] for r in val])
    assert summary["threshold"] == choose_threshold(labels, probability).value


def test_attention_of_every_test_slide_lies_at_its_place(run_uri: str, summary: dict[str, object]) -> None:
    tested = [row["slide_id"] for row in read_splits(run_uri).to_pylist() if row["split"] == "test"]
    names = storage.names(f"{run_uri}/attention")
    assert names == sorted(["index.json"] + [f"{name}.{form}" for name in tested for form in SUFFIXES.values()])
    positive = next(slide_id for slide_id in tested if int(slide_id[1:]) % 2)
    table = storage.read_table(f"{run_uri}/attention/{positive}.parquet")
    assert table["x"].to_pylist() == [PATCH_PX * k for k in range(6)]
    assert sum(table["weight"].to_pylist()) == pytest.approx(1.0)
    assert np.argmax(table["weight"].to_numpy()) == 2
    picture = np.asarray(Image.open(io.BytesIO(storage.read_bytes(f"{run_uri}/attention/{positive}.png"))))
    assert picture.shape == (PATCH_PX, 6 * PATCH_PX, 3)
    yellow = picture[..., 0].astype(int) - picture[..., 2]
    assert yellow[8, 2 * PATCH_PX + 8] == yellow.max()


def test_without_baselines_only_the_model_is_compared(run_uri: str, summary: dict[str, object]) -> None:
    assert len(evaluate(run_uri, baselines=False)["comparison"]) == 1


def test_test_labels_choose_nothing(tmp_path: Path) -> None:
    """Turning every test label over changes what is measured and nothing that was selected."""
    found = []
    for turned in (False, True):
        store = write_store(str(tmp_path / f"store{turned}"), slides=20)
        write_features(store)
        run = str(tmp_path / f"run{turned}")
        prepare_run(store.uri, str(tmp_path / f"plan{turned}"), TRAIN, SplitConfig(), None)
        rows = read_splits(str(tmp_path / f"plan{turned}")).to_pylist()
        for row in rows:
            row["label"] = 1 - row["label"] if turned and row["split"] == "test" else row["label"]
        storage.write_table(str(tmp_path / f"splits{turned}.parquet"), pa.Table.from_pylist(rows))
        prepare_run(store.uri, run, TRAIN, SplitConfig(), str(tmp_path / f"splits{turned}.parquet"))
        train_run(run, LocalContext(None, torch.device("cpu")))
        summary = evaluate(run, baselines=False)
        probability = storage.read_table(f"{run}/predictions.parquet")["probability"].to_pylist()
        found.append((summary["threshold"], probability, summary["auroc"]))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] == pytest.approx(1.0 - found[1][2])


def test_a_run_whose_instances_changed_is_refused(tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"))
    write_features(store)
    run = str(tmp_path / "run")
    config = TRAIN.model_copy(update={"epochs": 1})
    prepare_run(store.uri, run, config, SplitConfig(), None)
    with pytest.raises(InputError, match="is not finished"):
        evaluate(run)
    train_run(run, LocalContext(None, torch.device("cpu")))
    store.slide("s00").write_features("mean_rgb", np.zeros((6, 3), np.float16), {})
    with pytest.raises(StoreError, match="have changed since"):
        evaluate(run)


def test_a_bag_of_a_patient_s_slides_is_trained_and_told_slide_by_slide(tmp_path: Path) -> None:
    """Twenty slides of ten patients, two each with one label: a prediction per patient, attention per slide."""
    store = write_store(str(tmp_path / "store"), slides=20)
    write_features(store)
    annotate(store, tmp_path)
    table = store.manifest().to_table()
    patients = [f"p{k % 2}{k // 4}" for k in range(20)]
    place = table.schema.get_field_index("patient_id")
    store.write_manifest(Manifest.from_table(table.set_column(place, table.schema.field(place), pa.array(patients))))
    run = str(tmp_path / "run")
    config = TRAIN.model_copy(update={"bag": "patient"})
    prepare_run(store.uri, run, config, SplitConfig(), None)
    train_run(run, LocalContext(None, torch.device("cpu")))
    summary = evaluate(run)
    rows = storage.read_table(f"{run}/predictions.parquet").to_pylist()
    assert sorted(row["patient_id"] for row in rows) == sorted(set(patients))
    assert {slide_id for row in rows for slide_id in row["slide_id"].split(";")} == set(store.slide_ids())
    assert summary["auroc"] == 1.0
    assert summary["localisation_auroc"] == 1.0
    tested = [slide_id for row in rows if row["split"] == "test" for slide_id in row["slide_id"].split(";")]
    assert summary["slides"]["test"] == len(tested)
    tables = [storage.read_table(f"{run}/attention/{slide_id}.parquet") for slide_id in tested]
    assert [len(table) for table in tables] == [6] * len(tested)
    assert sum(table["weight"].to_numpy().sum() for table in tables) == pytest.approx(len(tested) / 2)
