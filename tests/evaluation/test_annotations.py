"""Evaluation reads annotations as ingestion recorded them, from the corner that QuPath counts from."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from milcore.api import run_state
from milcore.cohort.manifest import Manifest
from milcore.config import AnnotationConfig, SplitConfig, TrainConfig
from milcore.errors import DamageError, InputError
from milcore.evaluation.evaluate import evaluate
from milcore.ingestion.annotations import check_annotations
from milcore.runtime import storage
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run
from tests.cohorts import PATCH_PX, rewrite_metadata, write_features, write_store

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=12, batch_size=4, learning_rate=0.02)
DARK = 2 * PATCH_PX
CORNER = (PATCH_PX, 0)


def write_annotation(file: Path, squares: dict[str, int]) -> None:
    """A GeoJSON with a patch at a place of each class, in px from the corner of the bounds."""
    features = []
    for name, place in squares.items():
        left = place - CORNER[0]
        right = left + PATCH_PX
        ring = [[left, 0], [right, 0], [right, PATCH_PX], [left, PATCH_PX], [left, 0]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}})
    file.write_text(json.dumps(features))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on slides with bounds, whose dark patch is annotated as Tumor and the next one as Stroma."""
    folder = tmp_path_factory.mktemp("annotations")
    store = write_store(str(folder / "store"), slides=20)
    write_features(store)
    for slide_id in store.slide_ids():
        rewrite_metadata(store.group_uri(slide_id), {}, {"bounds": [*CORNER, 5 * PATCH_PX, PATCH_PX]})
    prepare_run(store.uri, str(folder / "run"), TRAIN, SplitConfig())
    train_run(str(folder / "run"), LocalContext(None, torch.device("cpu")))
    return folder


@pytest.fixture
def cohort(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder with its annotations ingested; the store is left without a record of them."""
    write_annotation(tmp_path / "a.geojson", {"Tumor": DARK, "Stroma": DARK + PATCH_PX})
    store = PatchStore(str(trained / "store"))
    rows = [row | {"annotation": str(tmp_path / "a.geojson")} for row in store.manifest().to_table().to_pylist()]
    table = store.manifest().to_table()
    store.write_manifest(Manifest.from_table(type(table).from_pylist(rows, schema=table.schema)))
    record(trained)
    yield tmp_path
    (trained / "store/annotations.json").unlink(missing_ok=True)


def record(folder: Path, **config: Any) -> None:
    store = PatchStore(str(folder / "store"))
    store.write_annotation_record(check_annotations(store.manifest(), AnnotationConfig(**config)))


def localisation(folder: Path, **given: Any) -> float | None:
    annotations = AnnotationConfig(**given) if given else None
    summary = evaluate(str(folder / "run"), baselines=False, attention_formats=("geojson",), annotations=annotations)
    value: float | None = summary["localisation_auroc"]
    return value


def first_left(folder: Path) -> float:
    """Left edge of a test slide's first patch in GeoJSON."""
    slide_id = next(row["slide_id"] for row in Run(str(folder / "run")).splits().to_pylist() if row["split"] == "test")
    collection = storage.read_json(str(folder / f"run/attention/{slide_id}.geojson"))
    left: float = collection["features"][0]["geometry"]["coordinates"][0][0][0]
    return left


@pytest.mark.usefixtures("cohort")
def test_annotation_and_attention_count_px_from_the_bounds(trained: Path) -> None:
    """The dark patch alone is attended; read from the slide's corner the annotation lies a patch to its left."""
    assert localisation(trained, annotation_class="Tumor") == 1.0
    assert first_left(trained) == -CORNER[0]
    moved = localisation(trained, annotation_class="Tumor", annotation_origin="slide")
    assert moved is not None
    assert moved < 1.0
    assert first_left(trained) == 0


@pytest.mark.usefixtures("cohort")
def test_classes_are_those_that_ingestion_recorded_unless_others_are_given(trained: Path) -> None:
    both = localisation(trained)
    assert both is not None
    assert both < 1.0
    record(trained, annotation_class="Tumor")
    assert localisation(trained) == 1.0
    assert localisation(trained, annotation_class="") == both
    with pytest.raises(InputError, match="got Lymph; allowed: Stroma, Tumor"):
        localisation(trained, annotation_class="Lymph")


def test_a_changed_annotation_is_refused_until_it_is_ingested(trained: Path, cohort: Path) -> None:
    before = (cohort / "a.geojson").read_bytes()
    write_annotation(cohort / "a.geojson", {"Tumor": DARK})
    with pytest.raises(InputError) as raised:
        localisation(trained)
    assert "expected the file that was ingested (sha256" in raised.value.line
    assert raised.value.line.endswith("restore it, or run milcore ingest again to take it")
    record(trained)
    assert localisation(trained) == 1.0
    (cohort / "a.geojson").write_bytes(before)
    with pytest.raises(InputError, match="expected the file that was ingested"):
        localisation(trained)


def test_a_scheduler_sees_that_an_annotation_was_ingested_anew(trained: Path, cohort: Path) -> None:
    """The evaluation of before would be reused; nothing but the annotation is another."""
    localisation(trained)
    before = run_state(str(trained / "run"))
    assert run_state(str(trained / "run")) == before
    write_annotation(cohort / "a.geojson", {"Tumor": DARK})
    record(trained)
    after = run_state(str(trained / "run"))
    assert after != before
    record(trained, annotation_class="Tumor")
    assert run_state(str(trained / "run")) not in {before, after}


def test_a_store_without_a_record_takes_the_annotations_as_they_are(trained: Path, cohort: Path) -> None:
    (trained / "store/annotations.json").unlink()
    write_annotation(cohort / "a.geojson", {"Tumor": DARK})
    assert localisation(trained) == 1.0


def test_a_damaged_record_is_an_error(trained: Path, cohort: Path) -> None:
    file = trained / "store/annotations.json"
    file.write_bytes(file.read_bytes().replace(b'"s00": "', b'"s00": "0'))
    with pytest.raises(DamageError, match=r"annotations\.json: expected the content that was written"):
        localisation(trained)


def test_slides_of_which_an_earlier_version_did_not_record_the_bounds_are_told(
    trained: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = PatchStore(str(trained / "store"))
    shutil.copytree(trained / "store/slides/s00.zarr", tmp_path / "s00.zarr")
    scan = {"reader": "openslide:mirax", "level0_affine": [], "icc_sha256": None, "tissue": {}}
    rewrite_metadata(old.group_uri("s00"), {}, {"bounds": None, **scan})
    try:
        localisation(trained)
    finally:
        shutil.rmtree(trained / "store/slides/s00.zarr")
        shutil.copytree(tmp_path / "s00.zarr", trained / "store/slides/s00.zarr")
    assert "1 slide(s) were ingested by an earlier version, which did not record their scanned bounds (s00)" in (
        capsys.readouterr().err
    )
