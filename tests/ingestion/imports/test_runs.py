"""What follows ingestion works on imports: training, evaluation, heat maps at the right place, localisation."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from milcore.cli.info import describe
from milcore.config import ImportConfig, SplitConfig, TrainConfig
from milcore.errors import StoreError
from milcore.evaluation.evaluate import evaluate
from milcore.evaluation.predict import predict
from milcore.ingestion.imports.import_cohort import import_source
from milcore.runtime import storage
from milcore.slides import open_slide
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run
from tests.ingestion.imports.made import BAGS, write_h5, write_labels

TRAIN = TrainConfig(features="imported", hidden=64, attention_hidden=32, epochs=40, batch_size=4, learning_rate=3e-3)
PATCH = 256
PLANTED = 30


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(store: str, run: str, config: TrainConfig = TRAIN, *, baselines: bool = False) -> dict[str, Any]:
    """Train and evaluate as ``milcore train --workers 0`` and ``milcore evaluate`` do."""
    prepare_run(store, run, config, SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    return evaluate(run, baselines=baselines)


def colours(slide_uri: Path) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the 8 x 11 whole patches of a real slide, column by column; mean and deviation of the RGB of each."""
    with open_slide(slide_uri) as reader:
        width, height = reader.size
        corners = [(x, y) for x in range(0, width - PATCH, PATCH) for y in range(0, height - PATCH, PATCH)]
        patches = [reader.read(x, y, 0, PATCH, PATCH).reshape(-1, 3) for x, y in corners]
    return np.array(corners), np.array([[*patch.mean(0), *patch.std(0)] for patch in patches]) / 64


def plant(folder: Path, slide_uri: Path, attrs: dict[str, Any]) -> tuple[int, int]:
    """Sixteen ``slides`` from a real one, colours jittered; in every other one patch 30 stands out. The place of it."""
    corners, colour = colours(slide_uri)
    random = np.random.default_rng(0)
    for k in range(16):
        features = (colour + random.normal(0, 0.05, colour.shape)).astype(np.float32)
        features[PLANTED] += 4.0 * (k % 2)
        write_h5(folder / f"s{k:02d}.h5", features, corners, **attrs)
    x, y = corners[PLANTED].tolist()
    return x, y


def peak(run: str, slide_id: str, size: tuple[int, int], place: tuple[int, int]) -> np.ndarray:
    """The overlay, once the table and the picture have been found to point at the place."""
    table = storage.read_table(f"{run}/attention/{slide_id}.parquet")
    top = int(np.argmax(table["weight"].to_numpy()))
    assert (table["x"][top].as_py(), table["y"][top].as_py(), table["size"][top].as_py()) == (*place, float(PATCH))
    picture = np.asarray(Image.open(io.BytesIO(storage.read_bytes(f"{run}/attention/{slide_id}.png"))))
    scale = picture.shape[1] / size[0]
    assert picture.shape[0] == round(size[1] * scale)
    yellow = picture[..., :2].astype(float).mean(axis=2) - picture[..., 2]
    left, top, edge = place[0] * scale, place[1] * scale, PATCH * scale
    inside = np.zeros(yellow.shape, bool)
    inside[round(top) : round(top + edge), round(left) : round(left + edge)] = True
    assert yellow[inside].min() > np.percentile(yellow[~inside], 99)
    return picture


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["clam", "trident"])
def test_attention_lies_at_the_patch_that_makes_an_imported_slide_positive(
    shared_data: Path, tmp_path: Path, kind: str
) -> None:
    """CLAM's files beside the slide: drawn on its thumbnail. TRIDENT's alone: on white of the size they tell."""
    slide_uri = shared_data / "slides" / "CMU-1-Small-Region.svs"
    attrs = {"level0_width": 2220, "level0_height": 2967, "patch_size": 256, "patch_size_level0": PATCH}
    place = plant(tmp_path / "made", slide_uri, attrs if kind == "trident" else {})
    named = str(slide_uri) if kind == "clam" else ""
    rows = [f"s{k:02d},{k % 2},{named if k % 2 else ''}" for k in range(16)]
    labels = write_labels(tmp_path, rows, "slide_id,label,uri")
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    summary = import_source(str(tmp_path / "made"), store, ImportConfig(format=kind, labels=labels))
    assert (len(summary.ok), summary.without_picture) == (16, {})
    metrics = trained(store, run)
    assert metrics["auroc"] == 1.0
    tested = [row["slide_id"] for row in Run(run).splits().to_pylist() if row["split"] == "test" and row["label"]]
    picture = peak(run, tested[0], (2220, 2967), place)
    blank = (picture == 255).all(axis=2)
    record = PatchStore(store).slide(tested[0]).record
    assert record.size_level0 == (2220, 2967)
    if kind == "clam":
        assert record.mpp.level0 == pytest.approx(0.499)
        assert blank.mean() < 0.05
    else:
        assert record.mpp is None
        assert blank[-1, -1]
    assert describe(store)["features"] == {"imported": 16}
    with pytest.raises(StoreError, match=r"got imported ones .*, whose ingestion cannot be repeated"):
        predict(run, [str(slide_uri)], str(tmp_path / "out"))


@pytest.mark.usefixtures("one_thread")
def test_bags_without_places_are_trained_and_evaluated_without_a_heat_map(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(24) % 2
    bag = np.repeat(np.arange(24), 6)
    features = random.normal(size=(144, 4)).astype(np.float32)
    features[::6, 0] += 9.0 * labels
    np.savez(tmp_path / "b.npz", X=features, bag=bag, y=labels)
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    import_source(str(tmp_path / "b.npz"), store, BAGS)
    metrics = trained(store, run, baselines=True)
    assert metrics["auroc"] == 1.0
    named = {row["name"]: row for row in metrics["comparison"]}
    assert (named["slide colour"]["auroc"], named["patch colour"]["localisation_auroc"]) == (None, None)
    report = storage.read_bytes(f"{run}/report.html").decode()
    assert report.count("imported without patches, so there is no colour") == 2
    assert "imported as bags-npz" in report
    names = storage.names(f"{run}/attention")
    assert not [name for name in names if name.endswith((".png", ".geojson", ".ome.tiff"))]
    tables = [name for name in names if name.endswith(".parquet")]
    table = storage.read_table(f"{run}/attention/{tables[1]}")
    assert table.column_names == ["weight", "percentile", "score"]
    with pytest.raises(
        StoreError, match=r"slides were imported without patches .* train on their features by --features"
    ):
        prepare_run(store, str(tmp_path / "run2"), TrainConfig(features=None, encoder="conv"), SplitConfig())


@pytest.mark.usefixtures("one_thread")
def test_imported_instance_labels_measure_localisation(tmp_path: Path) -> None:
    """Patches of noise; the third of every positive bag is dark and of the positive class."""
    random = np.random.default_rng(0)
    labels = np.arange(20) % 2
    patches = random.integers(150, 250, (120, 12, 12, 3), dtype=np.uint8)
    dark = np.arange(2, 120, 6)[labels == 1]
    patches[dark] //= 5
    classes = np.full(120, "normal")
    classes[dark] = "tumour"
    places = np.stack([np.arange(120) % 6 * 12, np.zeros(120)], axis=1)
    np.savez(tmp_path / "b.npz", patches=patches, bag=np.repeat(np.arange(20), 6), y=labels, cls=classes, xy=places)
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    config = ImportConfig(format="patches-npz", positive_instances=("tumour",), xy="corner")
    import_source(str(tmp_path / "b.npz"), store, config)
    for slide_id in PatchStore(store).slide_ids():
        slide = PatchStore(store).slide(slide_id)
        slide.write_features("colour", (slide.patches(0, 6).mean(axis=(1, 2)) / 255).astype(np.float16), {})
    metrics = trained(store, run, TRAIN.model_copy(update={"features": "colour"}), baselines=True)
    assert metrics["localisation_auroc"] == 1.0
    named = {row["name"]: row for row in metrics["comparison"]}
    assert named["patch colour"]["localisation_auroc"] == 1.0
    assert len([name for name in storage.names(f"{run}/attention") if name.endswith(".png")]) == 6
