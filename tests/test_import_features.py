"""Imports: values come back as they were, what is wrong is named, and what follows ingestion works on them."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from milcore import storage
from milcore.cli import app
from milcore.config import ImportConfig, ImportFormat, SplitConfig, TrainConfig
from milcore.errors import InputError, StoreError
from milcore.evaluate import evaluate
from milcore.import_features import IMPORTS, import_source
from milcore.imports.places import grid_step
from milcore.info import describe
from milcore.predict import predict
from milcore.run import prepare_run, read_splits, train_run
from milcore.slides import open_slide
from milcore.store import PatchStore
from milcore.train import LocalContext

BAGS = ImportConfig(format="bags-npz")
PATCHES = ImportConfig(format="patches-npz")


def write_bags(path: Path, **changed: Any) -> str:
    """Four bags of 3, 1, 2 and 2 instances, not in a row."""
    arrays = {
        "X": np.arange(24, dtype=np.float32).reshape(8, 3),
        "bag": np.array([0, 2, 0, 1, 3, 0, 2, 3], np.int32),
        "y": np.array([0, 1, 0, 1], np.uint8),
    }
    np.savez(path, **{name: value for name, value in (arrays | changed).items() if value is not None})
    return str(path)


def files(folder: str) -> dict[str, bytes]:
    """All files but what was seen of sources, whose times differ."""
    root = Path(folder)
    every = {str(file.relative_to(root)): file for file in sorted(root.rglob("*")) if file.is_file()}
    return {name: file.read_bytes() for name, file in every.items() if not name.startswith("sources")}


def test_bags_come_back_in_order_under_their_labels(tmp_path: Path) -> None:
    summary = import_source(write_bags(tmp_path / "b.npz"), str(tmp_path / "s"), BAGS)
    assert summary["ok"] == ["bag-0000", "bag-0001", "bag-0002", "bag-0003"]
    assert (summary["patches"], summary["features"], summary["skipped"]) == (8, "imported", 0)
    store = PatchStore(str(tmp_path / "s"))
    assert [slide.label for slide in store.manifest().slides] == [0, 1, 0, 1]
    slide = store.slide("bag-0000")
    assert slide.features("imported").read(0, 3).tolist() == [[0, 1, 2], [6, 7, 8], [15, 16, 17]]
    assert (slide.has_patches, slide.has_coords, slide.has_thumbnail) == (False, False, False)
    assert (slide.tissue, slide.instance_labels, slide.patch_size) == (None, None, None)
    with pytest.raises(StoreError, match="imported without patches; there are: features/imported"):
        slide.patches(0, 1)


@pytest.mark.parametrize(
    ("column", "kept"),
    [
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "float16"),
        # 1000.3 becomes 1000.5: 0.2 is more than 1/256 of a deviation of 0.1
        ([1000.0, 1000.1, 1000.2, 1000.3, 1000.0, 1000.1, 1000.2, 1000.3], "float32"),
        # beyond what float16 holds
        ([0.0, 1e5, 0.0, 1e5, 0.0, 1e5, 0.0, 1e5], "float32"),
    ],
)
def test_bags_are_kept_in_half_precision_where_that_changes_little(
    tmp_path: Path, column: list[float], kept: str
) -> None:
    values = np.array(column, np.float32)[:, None]
    import_source(write_bags(tmp_path / "b.npz", X=values), str(tmp_path / "s"), BAGS)
    read = PatchStore(str(tmp_path / "s")).slide("bag-0000").features("imported").read(0, 3)
    assert read.dtype == kept
    np.testing.assert_allclose(read[:, 0], values[[0, 2, 5], 0], rtol=0 if kept == "float32" else 1e-3)


def test_running_again_does_what_changed_only_and_gives_equal_bytes(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    source = write_bags(tmp_path / "b.npz")
    import_source(source, one, BAGS)
    before = files(one)
    assert import_source(source, one, BAGS)["skipped"] == 4
    features = np.arange(24, dtype=np.float32).reshape(8, 3)
    features[3] = 9.0
    write_bags(tmp_path / "b.npz", X=features)
    assert import_source(source, one, BAGS)["skipped"] == 3
    assert PatchStore(one).slide("bag-0001").features("imported").read(0, 1).tolist() == [[9, 9, 9]]
    write_bags(tmp_path / "b.npz")
    import_source(source, one, BAGS)
    import_source(source, two, BAGS)
    assert files(one) == files(two) == before


def test_features_that_were_not_finished_are_written_again(tmp_path: Path) -> None:
    source, store = write_bags(tmp_path / "b.npz"), str(tmp_path / "s")
    import_source(source, store, BAGS)
    uri = f"{store}/slides/bag-0002.zarr/features/imported/zarr.json"
    storage.write_json(uri, {**storage.read_json(uri), "attributes": {"complete": False}})
    assert import_source(source, store, BAGS)["skipped"] == 3
    assert PatchStore(store).slide("bag-0002").has_features("imported")


def test_a_bag_that_cannot_be_used_is_quarantined_and_the_others_go_on(tmp_path: Path) -> None:
    features = np.ones((8, 3), np.float32)
    features[3, 1] = np.nan
    source = write_bags(tmp_path / "b.npz", X=features, y=np.array([0, 1, 0, 1, 1]))
    summary = import_source(source, str(tmp_path / "s"), BAGS)
    assert summary["ok"] == ["bag-0000", "bag-0002", "bag-0003"]
    assert summary["quarantined"] == {
        "bag-0001": "1 of 1 rows of features hold NaN or infinity",
        "bag-0004": "no instances",
    }
    assert import_source(source, str(tmp_path / "s"), BAGS)["skipped"] == 5


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"X": None}, "has no X; it has bag, y; needed: X, bag, y"),
        ({"X": np.zeros(8)}, r"X has shape \(8,\), type float64; allowed: numbers \(instance, feature\)"),
        ({"bag": np.zeros(7, int)}, r"bag has shape \(7,\)"),
        ({"bag": np.full(8, 4)}, "bag holds 4 to 4; allowed: 0 to 3, as y has labels"),
        ({"y": np.array([0, 1, 2, 3])}, "2 problem.*row 3: label '2' is neither 0/1 nor a class name"),
        ({"X": np.array([{}], object)}, "cannot be read as .npz"),
    ],
)
def test_bags_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        import_source(write_bags(tmp_path / "b.npz", **changed), str(tmp_path / "s"), BAGS)
    assert re.search(line, caught.value.line)
    assert not (tmp_path / "s").exists()


def write_patches(path: Path, **changed: Any) -> tuple[str, np.ndarray]:
    patches = np.random.default_rng(0).integers(0, 256, (8, 9, 9, 3), dtype=np.uint8)
    patches = changed.pop("patches", patches)
    return write_bags(path, X=None, patches=patches, **changed), patches


@pytest.mark.parametrize("shape", [(8, 9, 9, 3), (8, 9, 9, 1), (8, 9, 9)])
def test_patches_come_back_as_they_were(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    source, _ = write_patches(tmp_path / "b.npz", patches=pixels)
    summary = import_source(source, str(tmp_path / "s"), PATCHES)
    assert (summary["patches"], summary["features"]) == (8, None)
    slide = PatchStore(str(tmp_path / "s")).slide("bag-0002")
    colour = np.broadcast_to(pixels.reshape(8, 9, 9, -1), (8, 9, 9, 3))
    np.testing.assert_array_equal(slide.patches(0, 2), colour[[1, 6]])
    assert (slide.patch_size, slide.attrs["codec"], slide.has_coords) == (9, "zstd", False)
    assert import_source(source, str(tmp_path / "s"), PATCHES)["skipped"] == 4


@pytest.mark.parametrize(("xy", "edge", "corner"), [("centre", None, 95), ("corner", None, 100), ("centre", 40.0, 80)])
def test_places_are_the_corners_of_patches(tmp_path: Path, xy: str, edge: float | None, corner: int) -> None:
    """A centre at 100 px of a patch of 9 px begins at 95.5, so at px 95; one of 40 px at 80."""
    source, _ = write_patches(tmp_path / "b.npz", xy=np.full((8, 2), 100.0, np.float32))
    config = ImportConfig(format="patches-npz", xy=xy, patch_size_level0=edge)
    import_source(source, str(tmp_path / "s"), config)
    slide = PatchStore(str(tmp_path / "s")).slide("bag-0000")
    assert slide.coords.tolist() == [[corner, corner]] * 3
    assert slide.size_level0 == (edge or 9.0)
    assert slide.attrs["size_level0"] == [corner + int(edge or 9)] * 2


def test_classes_of_instances_become_instance_labels(tmp_path: Path) -> None:
    named = np.array(["tumour", "fat", "tumour", "", "other", "fat", "other", "tumour"])
    source, _ = write_patches(tmp_path / "b.npz", cls=named)
    import_source(source, str(tmp_path / "s"), PATCHES.model_copy(update={"positive_instances": ("tumour", "other")}))
    store = PatchStore(str(tmp_path / "s"))
    assert store.slide("bag-0000").instance_labels.tolist() == [1, 1, 0]
    assert store.slide("bag-0001").instance_labels.tolist() == [-1]
    assert store.slide("bag-0000").attrs["instance_class_names"] == ["fat", "other", "tumour"]


def test_numbered_classes_take_their_names(tmp_path: Path) -> None:
    arrays = {"cls": np.array([0, 1, 1, 0, 2, 0, 2, 1], np.uint8), "cls_names": np.array(["a", "b", "c"])}
    source, _ = write_patches(tmp_path / "b.npz", **arrays)
    import_source(source, str(tmp_path / "s"), PATCHES.model_copy(update={"positive_instances": ("a",)}))
    assert PatchStore(str(tmp_path / "s")).slide("bag-0000").instance_labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("changed", "asked", "line"),
    [
        (
            {"patches": np.zeros((8, 9, 8, 3), np.uint8)},
            (),
            r"shape \(8, 9, 8, 3\), type uint8; allowed: uint8",
        ),
        ({"patches": np.zeros((8, 9, 9, 3))}, (), "type float64"),
        ({"xy": np.zeros((7, 2))}, (), r"xy has shape \(7, 2\); allowed: \(8, 2\)"),
        ({}, ("tumour",), "has no cls for --positive-instances"),
        ({"cls": np.array(["a", "b"] * 4)}, ("tumour",), "no instance class tumour; allowed: a, b"),
        ({"cls": np.arange(8), "cls_names": np.array(["a"])}, (), "cls holds 7; allowed: below 1"),
    ],
)
def test_patches_that_do_not_fit_are_refused(
    tmp_path: Path, changed: dict[str, Any], asked: tuple[str, ...], line: str
) -> None:
    source, _ = write_patches(tmp_path / "b.npz", **changed)
    with pytest.raises(InputError, match=line):
        import_source(source, str(tmp_path / "s"), PATCHES.model_copy(update={"positive_instances": asked}))


def test_what_a_store_holds_already_is_not_written_over(tmp_path: Path) -> None:
    store = str(tmp_path / "s")
    import_source(write_bags(tmp_path / "b.npz"), store, BAGS)
    with pytest.raises(InputError, match="holds features/imported, this import makes features/other"):
        import_source(str(tmp_path / "b.npz"), store, BAGS.model_copy(update={"name": "other"}))


GRID = np.array([[x, y] for y in (0, 256, 512) for x in (0, 256, 512, 768)])


def write_h5(path: Path, features: np.ndarray, coords: np.ndarray | None = GRID, **attrs: Any) -> None:
    """As CLAM and TRIDENT lay them out: datasets ``features`` and ``coords``, attributes on ``coords``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = features
        if coords is not None:
            file["coords"] = coords
            file["coords"].attrs.update(attrs)


def write_pt(path: Path, features: np.ndarray, coords: np.ndarray | None = None, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensor = torch.from_numpy(features)
    torch.save(tensor if coords is None else {"features": tensor, "coords": torch.from_numpy(coords), **more}, path)


def write_labels(folder: Path, rows: list[str], header: str = "slide_id,label") -> str:
    (folder / "labels.csv").write_text("\n".join([header, *rows, ""]))
    return str(folder / "labels.csv")


def features_of(seed: int, rows: int = 12, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def import_files(folder: Path, kind: str, rows: tuple[str, ...] = ("a,0", "b,1"), **settings: Any) -> dict[str, Any]:
    config = ImportConfig(format=kind, labels=write_labels(folder, list(rows)), **settings)
    return import_source(str(folder / "made"), str(folder / "store"), config)


CLAM = {"patch_size": 128, "patch_level": 1, "downsample": (2.0, 2.0)}
TRIDENT = {
    "patch_size": 224,
    "patch_size_level0": 256,
    "level0_magnification": 40,
    "target_magnification": 20,
    "level0_width": 4000,
    "level0_height": 3000,
}
GRID_EXTENT = [1024, 768]


@pytest.mark.parametrize(
    ("kind", "leading", "attrs", "told"),
    [
        ("clam", False, {}, (256.0, "grid step", GRID_EXTENT, None)),
        ("clam", False, CLAM, (256.0, "source", GRID_EXTENT, 128)),
        ("trident", False, TRIDENT, (256.0, "source", [4000, 3000], 224)),
        ("trident", True, TRIDENT, (256.0, "source", [4000, 3000], 224)),
        (
            "trident",
            False,
            {"patch_size": 64, "level0_magnification": 40, "target_magnification": 10},
            (256.0, "source", GRID_EXTENT, 64),
        ),
    ],
)
def test_what_clam_and_trident_write_comes_back(
    tmp_path: Path, kind: str, leading: bool, attrs: dict[str, Any], told: tuple[Any, ...]
) -> None:
    for seed, name in enumerate("ab"):
        features = features_of(seed)
        write_h5(tmp_path / "made" / f"{name}.h5", features[None] if leading else features, **attrs)
    assert import_files(tmp_path, kind)["ok"] == ["a", "b"]
    slide = PatchStore(str(tmp_path / "store")).slide("b")
    np.testing.assert_array_equal(slide.features("imported").read(0, 12), features_of(1).astype(np.float16))
    np.testing.assert_array_equal(slide.coords, GRID)
    found = (slide.size_level0, slide.attrs["patch_size_level0_from"], slide.attrs["size_level0"], slide.patch_size)
    assert found == told


def test_the_step_of_grids_that_begin_at_each_contour_is_that_inside_them() -> None:
    """Two grids of step 256 shifted by (100, 0): 100 and 156 lie between them in each row, 256 inside most."""
    both = np.concatenate([GRID, [[1124, 0], [1380, 0], [1636, 0]]])
    assert grid_step(both) == 256
    assert grid_step(np.array([[0, 0], [512, 0], [0, 256]])) == 256
    assert grid_step(np.array([[0, 0], [5, 7]])) is None


def test_an_edge_that_is_asked_for_goes_before_that_of_the_source(tmp_path: Path) -> None:
    write_h5(tmp_path / "made" / "a.h5", features_of(0), **CLAM)
    import_files(tmp_path, "clam", ("a,0",), patch_size_level0=300.0)
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    assert (slide.size_level0, slide.attrs["patch_size_level0_from"]) == (300.0, "option")


@pytest.mark.parametrize("kind", ["clam", "pt"])
def test_clam_s_own_folders_are_found(tmp_path: Path, kind: str) -> None:
    write_h5(tmp_path / "made" / "h5_files" / "a.h5", features_of(0))
    write_pt(tmp_path / "made" / "pt_files" / "a.pt", features_of(0))
    assert import_files(tmp_path, kind, ("a,0",))["ok"] == ["a"]
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    np.testing.assert_array_equal(slide.features("imported").read(0, 12), features_of(0).astype(np.float16))


def test_tensors_alone_or_with_places_come_back(tmp_path: Path) -> None:
    write_pt(tmp_path / "made" / "a.pt", features_of(0))
    write_pt(tmp_path / "made" / "b.pt", features_of(1), GRID, patch_size_level0=512)
    torch.save(torch.from_numpy(features_of(2)).bfloat16(), tmp_path / "made" / "c.pt")
    assert import_files(tmp_path, "pt", ("a,0", "b,1", "c,0"))["ok"] == ["a", "b", "c"]
    store = PatchStore(str(tmp_path / "store"))
    np.testing.assert_array_equal(store.slide("a").features("imported").read(0, 12), features_of(0).astype(np.float16))
    assert not store.slide("a").has_coords
    assert store.slide("b").coords.tolist() == GRID.tolist()
    assert store.slide("b").size_level0 == 512.0
    np.testing.assert_allclose(store.slide("c").features("imported").read(0, 12), features_of(2), rtol=2**-7)


def test_a_table_comes_back_slide_by_slide(tmp_path: Path) -> None:
    values = features_of(0, rows=6)
    table = {
        "slide_id": ["b", "a", "b", "a", "a", "b"],
        "label": ["tumour", "normal", "tumour", "normal", "normal", "tumour"],
        "patient_id": ["p1", "p2", "p1", "p2", "p2", "p1"],
        "x": [0.0, 0.0, 64.0, 64.0, 128.0, 128.0],
        "y": [0.0] * 6,
    }
    listed, numeric = str(tmp_path / "listed.parquet"), str(tmp_path / "numeric.parquet")
    storage.write_table(listed, pa.table({**table, "features": values.tolist()}))
    storage.write_table(numeric, pa.table({**table, **{f"f{k}": values[:, k] for k in range(5)}}))
    for source in (listed, numeric):
        uri = source.replace(".parquet", "")
        assert import_source(source, uri, ImportConfig(format="parquet"))["ok"] == ["b", "a"]
        store = PatchStore(uri)
        slides = store.manifest().slides
        assert [(s.slide_id, s.label, s.patient_id) for s in slides] == [("b", 1, "p1"), ("a", 0, "p2")]
        assert store.manifest().classes == ("normal", "tumour")
        read = store.slide("a").features("imported").read(0, 3)
        np.testing.assert_array_equal(read, values[[1, 3, 4]].astype(read.dtype))
        assert store.slide("a").coords.tolist() == [[0, 0], [64, 0], [128, 0]]
        assert store.slide("a").size_level0 == 64.0


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"slide_id": None}, "has no column slide_id; it has label, f0; needed: slide_id, label"),
        ({"label": [0, 1, 0]}, "slide 'a' has label 0 and 1; allowed: one"),
        ({"f0": None}, "has no features; allowed: a list column features, or numeric columns"),
        ({"f0": ["x", "y", "z"]}, "column f0 of string"),
        ({"features": [[1.0], [2.0, 3.0], [4.0]]}, "row 2 has 2 features of double, row 1 has 1"),
        ({"x": [0.0, None, 2.0], "y": [0.0, 0.0, 0.0]}, "x or y is missing in 1 rows"),
        ({"slide_id": ["a", None, "b"]}, "slide_id is empty in 1 of 3 rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, changed: dict[str, Any], line: str) -> None:
    table = {"slide_id": ["a", "a", "b"], "label": [0, 0, 1], "f0": [0.1, 0.2, 0.3]} | changed
    storage.write_table(
        str(tmp_path / "t.parquet"), pa.table({name: its for name, its in table.items() if its is not None})
    )
    with pytest.raises(InputError) as caught:
        import_source(str(tmp_path / "t.parquet"), str(tmp_path / "s"), ImportConfig(format="parquet"))
    assert line in caught.value.line


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _spoil_h5(folder: Path) -> None:
    """Slides that cannot be used, each in its own way, beside a and b, which can."""
    features = features_of(0)
    nan, huge = features.copy(), features.copy()
    nan[2, 1], huge[0, 0] = np.nan, 1e5
    for name, its in {"a": features, "b": features, "nan": nan, "huge": huge, "wide": features_of(0, width=7)}.items():
        write_h5(folder / f"{name}.h5", its)
    write_h5(folder / "short.h5", features)
    _cut_short(folder / "short.h5")
    write_h5(folder / "rows.h5", features, GRID[:-1])
    write_h5(folder / "flat.h5", features[0])
    write_h5(folder / "empty.h5", features[:0], GRID[:0])
    write_h5(folder / "lonely.h5", features[:1], GRID[:1])
    write_h5(folder / "outside.h5", features, **TRIDENT | {"level0_width": 700})
    (folder / "text.h5").write_text("no features here")
    with h5py.File(folder / "other.h5", "w") as file:
        file["embeddings"] = features


SPOILT = {
    "nan": "1 of 12 rows of features hold NaN or infinity",
    "huge": "features reach 100,000, float16 holds 65,504 at most",
    "wide": "features 7 wide, most slides have 5",
    "short": "not readable as HDF5",
    "rows": "12 rows of features, 11 of coords; allowed: one place per row",
    "flat": r"features of shape \(5,\), type float32; allowed: numbers \(instance, feature\)",
    "empty": "no instances",
    "lonely": "no patch size: the source tells none and no two coords share a row; give --patch-size-level0",
    "outside": r"a patch begins at \(768, 512\), the slide measures 700 x 3000 px: another slide\?",
    "text": "not readable as HDF5",
    "other": "no features in it; it has embeddings",
    "gone": "no file gone.h5 in ",
}


def test_every_slide_that_cannot_be_used_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    _spoil_h5(tmp_path / "made")
    rows = tuple(f"{name},{k % 2}" for k, name in enumerate(["a", "b", *SPOILT]))
    summary = import_files(tmp_path, "trident", rows)
    assert summary["ok"] == ["a", "b"]
    assert set(summary["quarantined"]) == set(SPOILT)
    for name, reason in SPOILT.items():
        assert re.search(reason, summary["quarantined"][name]), summary["quarantined"][name]
    write_h5(tmp_path / "made" / "gone.h5", features_of(3))
    write_h5(tmp_path / "made" / "wide.h5", features_of(4))
    again = import_files(tmp_path, "trident", rows)
    assert again["ok"] == ["a", "b", "wide", "gone"]
    assert again["skipped"] == len(rows) - 2


def test_tensors_that_cannot_be_read_are_quarantined(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_pt(made / "a.pt", features_of(0))
    write_pt(made / "short.pt", features_of(0))
    _cut_short(made / "short.pt")
    torch.save({"labels": torch.zeros(3)}, made / "other.pt")
    torch.save({"features": Path("x")}, made / "objects.pt")
    reasons = import_files(tmp_path, "pt", ("a,0", "short,1", "other,1", "objects,0"))["quarantined"]
    assert set(reasons) == {"short", "other", "objects"}
    assert "may run code when read" in reasons["objects"]
    assert reasons["other"] == "no features in it; it has labels"
    assert all(len(reason.splitlines()) == 1 for reason in reasons.values())


def test_files_without_a_label_are_named_and_left_out(tmp_path: Path) -> None:
    for name in "abcd":
        write_h5(tmp_path / "made" / f"{name}.h5", features_of(0))
    summary = import_files(tmp_path, "clam")
    assert (summary["ok"], summary["unlabelled"]) == (["a", "b"], ["c", "d"])


def test_a_file_that_is_touched_or_newly_labelled_is_not_written_again(tmp_path: Path) -> None:
    for name in "ab":
        write_h5(tmp_path / "made" / f"{name}.h5", features_of(0))
    import_files(tmp_path, "clam")
    (tmp_path / "made" / "a.h5").touch()
    assert import_files(tmp_path, "clam", ("a,1", "b,0"))["skipped"] == 2
    assert [slide.label for slide in PatchStore(str(tmp_path / "store")).manifest().slides] == [1, 0]


def test_an_import_goes_to_s3_as_to_the_disk(folder_uri: str, tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", features_of(0))
    for name in "ab":
        storage.write_bytes(f"{folder_uri}/made/{name}.h5", (tmp_path / "a.h5").read_bytes())
    storage.write_bytes(f"{folder_uri}/labels.csv", b"slide_id,label\na,0\nb,1\n")
    config = ImportConfig(format="clam", labels=f"{folder_uri}/labels.csv")
    for skipped in (0, 2):
        summary = import_source(f"{folder_uri}/made", f"{folder_uri}/store", config)
        assert (summary["ok"], summary["skipped"]) == (["a", "b"], skipped)
    slide = PatchStore(f"{folder_uri}/store").slide("b")
    np.testing.assert_array_equal(slide.features("imported").read(0, 12), features_of(0).astype(np.float16))


def test_the_table_of_formats_has_the_names_of_the_setting() -> None:
    assert tuple(IMPORTS) == get_args(ImportFormat)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--format", "clam"], "format clam got labels=None; allowed: a table of labels with clam, trident, pt"),
        (["--format", "bags-npz", "--labels", "x.csv"], "got labels='x.csv'"),
        (["--format", "clam", "--labels", "absent.csv"], "manifest absent.csv cannot be read"),
        (["--format", "parquet", "--positive-instances", "a"], "allowed: with patches-npz only"),
        (["--format", "csv"], "Input should be 'bags-npz'"),
        (["--format", "bags-npz"], "cannot be read as .npz"),
        (["--format", "parquet"], "cannot be read as Parquet"),
        (["--format", "clam", "--labels", "LABELS"], "holds no .h5 or .hdf5 file, nor does its folder h5_files"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    labels = write_labels(tmp_path, ["a,0"])
    with pytest.raises((InputError, SystemExit)) as caught:
        CliRunner().invoke(
            app,
            ["import", str(tmp_path / "x"), str(tmp_path / "s"), *(labels if w == "LABELS" else w for w in arguments)],
            catch_exceptions=False,
        )
    assert isinstance(caught.value, InputError)
    assert line in caught.value.line
    assert not (tmp_path / "s").exists()


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
    prepare_run(store, run, config, SplitConfig(), None)
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
    assert (len(summary["ok"]), summary["without_picture"]) == (16, {})
    metrics = trained(store, run)
    assert metrics["auroc"] == 1.0
    tested = [row["slide_id"] for row in read_splits(run).to_pylist() if row["split"] == "test" and row["label"]]
    picture = peak(run, tested[0], (2220, 2967), place)
    blank = (picture == 255).all(axis=2)
    attrs = PatchStore(store).slide(tested[0]).attrs
    assert attrs["size_level0"] == [2220, 2967]
    if kind == "clam":
        assert attrs["mpp"]["level0"] == pytest.approx(0.499)
        assert blank.mean() < 0.05
    else:
        assert "mpp" not in attrs
        assert blank[-1, -1]
    assert describe(store)["features"] == {"imported": 16}
    with pytest.raises(StoreError, match=r"were imported: what made them elsewhere cannot be repeated"):
        predict(run, [str(slide_uri)], str(tmp_path / "out"))


def test_a_slide_that_cannot_be_read_costs_the_picture_only(tmp_path: Path) -> None:
    write_h5(tmp_path / "made" / "a.h5", features_of(0))
    labels = write_labels(tmp_path, ["a,0,gone.svs,0.25"], "slide_id,label,uri,mpp")
    config = ImportConfig(format="clam", labels=labels)
    summary = import_source(str(tmp_path / "made"), str(tmp_path / "store"), config)
    assert summary["ok"] == ["a"]
    assert "there is no such file" in summary["without_picture"]["a"]
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    assert (slide.has_thumbnail, slide.attrs["mpp"]["level0"]) == (False, 0.25)
    Image.new("RGB", (1100, 800), (200, 100, 150)).save(tmp_path / "gone.svs", "PNG")
    again = import_source(str(tmp_path / "made"), str(tmp_path / "store"), config)
    assert (again["skipped"], again["without_picture"]) == (0, {})
    assert PatchStore(str(tmp_path / "store")).slide("a").attrs["size_level0"] == [1100, 800]


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
        prepare_run(store, str(tmp_path / "run2"), TrainConfig(features=None, encoder="conv"), SplitConfig(), None)


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
