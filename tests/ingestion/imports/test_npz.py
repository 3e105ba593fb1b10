"""Bags of features and of patches in one npz come back as they were; what does not fit is refused."""

import io
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milcore.config import ImportConfig
from milcore.errors import InputError, StoreError
from milcore.ingestion.imports.import_cohort import import_source
from milcore.runtime import storage
from milcore.store.store import PatchStore
from tests.ingestion.imports.made import BAGS, write_bags

PATCHES = ImportConfig(format="patches-npz")


def files(folder: str) -> dict[str, bytes]:
    """All files but what was seen of sources, whose times differ, and the catalogue, which has a history."""
    root = Path(folder)
    every = {str(file.relative_to(root)): file for file in sorted(root.rglob("*")) if file.is_file()}
    return {name: file.read_bytes() for name, file in every.items() if not name.startswith(("sources", "catalogue"))}


def test_bags_come_back_in_order_under_their_labels(tmp_path: Path) -> None:
    summary = import_source(write_bags(tmp_path / "b.npz"), str(tmp_path / "s"), BAGS)
    assert summary.ok == ["bag-0000", "bag-0001", "bag-0002", "bag-0003"]
    assert (summary.patches, summary.features, summary.skipped) == (8, "imported", 0)
    store = PatchStore(str(tmp_path / "s"))
    assert [slide.label for slide in store.manifest().slides] == [0, 1, 0, 1]
    slide = store.slide("bag-0000")
    assert slide.features("imported").read(0, 3).tolist() == [[0, 1, 2], [6, 7, 8], [15, 16, 17]]
    assert (slide.has_patches, slide.has_coords, slide.has_thumbnail) == (False, False, False)
    assert (slide.tissue, slide.instance_labels, slide.patch_size) == (None, None, None)
    with pytest.raises(StoreError, match="expected patches, got an import without; allowed: features/imported"):
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
    assert import_source(source, one, BAGS).skipped == 4
    features = np.arange(24, dtype=np.float32).reshape(8, 3)
    features[3] = 9.0
    write_bags(tmp_path / "b.npz", X=features)
    assert import_source(source, one, BAGS).skipped == 3
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
    assert import_source(source, store, BAGS).skipped == 3
    assert PatchStore(store).slide("bag-0002").has_features("imported")


def test_a_bag_that_cannot_be_used_is_quarantined_and_the_others_go_on(tmp_path: Path) -> None:
    features = np.ones((8, 3), np.float32)
    features[3, 1] = np.nan
    source = write_bags(tmp_path / "b.npz", X=features, y=np.array([0, 1, 0, 1, 1]))
    summary = import_source(source, str(tmp_path / "s"), BAGS)
    assert summary.ok == ["bag-0000", "bag-0002", "bag-0003"]
    assert summary.quarantined == {
        "bag-0001": "1 of 1 rows of features hold NaN or infinity",
        "bag-0004": "no instances",
    }
    assert import_source(source, str(tmp_path / "s"), BAGS).skipped == 5


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"X": None}, "expected the arrays X, bag, y, got bag, y; allowed: further arrays; add X"),
        ({"X": np.zeros(8)}, r"got shape \(8,\), type float64; allowed: numbers \(instance, feature\)"),
        ({"bag": np.zeros(7, int)}, r"bag: expected .* got shape \(7,\)"),
        ({"bag": np.full(8, 4)}, "bag: expected indices of the labels y, got 4 to 4; allowed: 0 to 3"),
        (
            {"y": np.array([0, 1, 0.5, 3])},
            "1 problem.*row 3: label: expected a whole number or a class name, got '0.5'",
        ),
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
    assert (summary.patches, summary.features) == (8, None)
    slide = PatchStore(str(tmp_path / "s")).slide("bag-0002")
    colour = np.broadcast_to(pixels.reshape(8, 9, 9, -1), (8, 9, 9, 3))
    np.testing.assert_array_equal(slide.patches(0, 2), colour[[1, 6]])
    assert (slide.patch_size, slide.record.codec, slide.has_coords) == (9, "zstd", False)
    assert import_source(source, str(tmp_path / "s"), PATCHES).skipped == 4


@pytest.mark.parametrize(("xy", "edge", "corner"), [("centre", None, 95), ("corner", None, 100), ("centre", 40.0, 80)])
def test_places_are_the_corners_of_patches(tmp_path: Path, xy: str, edge: float | None, corner: int) -> None:
    """A centre at 100 px of a patch of 9 px begins at 95.5, so at px 95; one of 40 px at 80."""
    source, _ = write_patches(tmp_path / "b.npz", xy=np.full((8, 2), 100.0, np.float32))
    config = ImportConfig(format="patches-npz", xy=xy, patch_size_level0=edge)
    import_source(source, str(tmp_path / "s"), config)
    slide = PatchStore(str(tmp_path / "s")).slide("bag-0000")
    assert slide.coords.tolist() == [[corner, corner]] * 3
    assert slide.patch_size_level0 == (edge or 9.0)
    assert slide.record.size_level0 == (corner + int(edge or 9),) * 2


def test_classes_of_instances_become_instance_labels(tmp_path: Path) -> None:
    named = np.array(["tumour", "fat", "tumour", "", "other", "fat", "other", "tumour"])
    source, _ = write_patches(tmp_path / "b.npz", cls=named)
    import_source(source, str(tmp_path / "s"), PATCHES.model_copy(update={"positive_instances": ("tumour", "other")}))
    store = PatchStore(str(tmp_path / "s"))
    assert store.slide("bag-0000").instance_labels.tolist() == [1, 1, 0]
    assert store.slide("bag-0001").instance_labels.tolist() == [-1]
    assert store.slide("bag-0000").record.instance_class_names == ("fat", "other", "tumour")


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
        ({"xy": np.zeros((7, 2))}, (), r"xy: expected .* got shape \(7, 2\); allowed: \(8, 2\)"),
        ({}, ("tumour",), "expected an array cls for --positive-instances, got"),
        ({"cls": np.array(["a", "b"] * 4)}, ("tumour",), "got tumour; allowed: a, b"),
        (
            {"cls": np.arange(8), "cls_names": np.array(["a"])},
            (),
            "cls: expected indices of cls_names, got 7; allowed: below 1",
        ),
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
    with pytest.raises(InputError, match="got features/imported, where this import makes features/other"):
        import_source(str(tmp_path / "b.npz"), store, BAGS.model_copy(update={"name": "other"}))


def test_arrays_that_declare_more_than_memory_are_one_line(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("X.npy", header.getvalue())
    with pytest.raises(InputError, match=r"a\.npz cannot be read as \.npz"):
        import_source(str(tmp_path / "a.npz"), str(tmp_path / "store"), ImportConfig(format="bags-npz"))


def _npy(shape: str, data: bytes = b"") -> bytes:
    """An array whose header declares a shape, behind which lies less."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def _archive(path: Path, member: bytes, change: Callable[[bytearray], None] | None = None) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", member)
    data = bytearray(path.read_bytes())
    if change is not None:
        change(data)
    path.write_bytes(data)
    return str(path)


def _encrypted(data: bytearray) -> None:
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1


def _of_another_method(data: bytearray) -> None:
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 99


FORMS: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "one array": lambda path: path.write_bytes(_npy("(3,)", bytes(12))),
    "exabytes": lambda path: _archive(path, _npy("(1000000000000, 4)")),
    "beyond any number": lambda path: _archive(path, _npy(f"({2**70}, 4)")),
    "an open bracket": lambda path: _archive(path, _npy("(" * 60)),
    "encrypted": lambda path: _archive(path, _npy("(0, 4)"), _encrypted),
    "another method": lambda path: _archive(path, _npy("(0, 4)"), _of_another_method),
}


@pytest.mark.parametrize("form", FORMS)
def test_archives_that_cannot_be_read_are_one_line(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / "b.npz")
    with pytest.raises(InputError, match=r"b\.npz cannot be read as \.npz .*; give one with X, bag, y") as error:
        import_source(str(tmp_path / "b.npz"), str(tmp_path / "s"), BAGS)
    assert len(str(error.value).splitlines()) == 1


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """1.1 GB of zeros in 1 MB: no features pack like that."""
    with (
        zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("X.npy", "w", force_zip64=True) as member,
    ):
        member.write(_npy("(275000000, 1)"))
        for _ in range(110):
            member.write(bytes(10**7))
    with pytest.raises(InputError, match=r"declares 1 GB, has 1\.\d MB; allowed: 200 times what it has"):
        import_source(str(tmp_path / "b.npz"), str(tmp_path / "s"), BAGS)
