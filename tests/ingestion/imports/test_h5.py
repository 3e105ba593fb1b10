"""What CLAM, TRIDENT and STAMP write comes back with its places; what cannot be used is quarantined with its reason."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from milcore.config import ImportConfig
from milcore.ingestion.imports.coords import grid_step
from milcore.ingestion.imports.import_cohort import import_source
from milcore.store.store import PatchStore
from tests.ingestion.imports.made import (
    GRID,
    TRIDENT,
    cut_short,
    features_of,
    import_files,
    write_h5,
    write_labels,
    write_pt,
)

CLAM = {"patch_size": 128, "patch_level": 1, "downsample": (2.0, 2.0)}
GRID_EXTENT = (1024, 768)


@pytest.mark.parametrize(
    ("kind", "leading", "attrs", "grid"),
    [
        ("clam", False, {}, (256.0, "grid step", GRID_EXTENT, None)),
        ("clam", False, CLAM, (256.0, "source", GRID_EXTENT, 128)),
        ("trident", False, TRIDENT, (256.0, "source", (4000, 3000), 224)),
        ("trident", True, TRIDENT, (256.0, "source", (4000, 3000), 224)),
        (
            "trident",
            False,
            {"patch_size": 64, "level0_magnification": 40, "target_magnification": 10},
            (256.0, "source", GRID_EXTENT, 64),
        ),
    ],
)
def test_what_clam_and_trident_write_comes_back(
    tmp_path: Path, kind: str, leading: bool, attrs: dict[str, Any], grid: tuple[Any, ...]
) -> None:
    for seed, name in enumerate("ab"):
        features = features_of(seed)
        write_h5(tmp_path / "made" / f"{name}.h5", features[None] if leading else features, **attrs)
    assert import_files(tmp_path, kind).ok == ["a", "b"]
    slide = PatchStore(str(tmp_path / "store")).slide("b")
    np.testing.assert_array_equal(slide.features("imported").read(0, 12), features_of(1).astype(np.float16))
    np.testing.assert_array_equal(slide.coords, GRID)
    record = slide.record
    assert (record.patch_size_level0, record.patch_size_level0_origin, record.size_level0, record.patch_size) == grid


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
    assert (slide.patch_size_level0, slide.record.patch_size_level0_origin) == (300.0, "option")


@pytest.mark.parametrize("kind", ["clam", "pt"])
def test_clam_s_own_folders_are_found(tmp_path: Path, kind: str) -> None:
    write_h5(tmp_path / "made" / "h5_files" / "a.h5", features_of(0))
    write_pt(tmp_path / "made" / "pt_files" / "a.pt", features_of(0))
    assert import_files(tmp_path, kind, ("a,0",)).ok == ["a"]
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    np.testing.assert_array_equal(slide.features("imported").read(0, 12), features_of(0).astype(np.float16))


STAMP = {"unit": "um", "tile_size_um": 128.0, "tile_size_px": 224}
EARLIER_STAMP = {"unit": "um", "tile_size": 128.0}


def _write_stamp(path: Path, coords: np.ndarray, **attrs: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["feats"], file["coords"] = features_of(0), coords
        file.attrs.update(attrs)


@pytest.mark.parametrize(
    ("coords", "attrs", "patch_size"),
    [
        (GRID * 0.5, STAMP, 224),
        (GRID * 0.5, EARLIER_STAMP, None),
        # 0.4999 um from rounding down a float is a whole px
        (np.nextafter(GRID * 0.5, -1.0), STAMP, 224),
    ],
)
@pytest.mark.parametrize("kind", ["stamp", "clam"])
def test_places_that_stamp_writes_in_um_become_level_0_px(
    tmp_path: Path, coords: np.ndarray, attrs: dict[str, Any], patch_size: int | None, kind: str
) -> None:
    """At 0.5 um/px, 128 um are 256 px; the program is read from the file, whatever the format is called."""
    _write_stamp(tmp_path / "made/a.h5", coords, **attrs)
    labels = write_labels(tmp_path, ["a,1,0.5"], "slide_id,label,mpp")
    import_source(str(tmp_path / "made"), str(tmp_path / "store"), ImportConfig(format=kind, labels=labels))
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    np.testing.assert_array_equal(slide.coords, GRID)
    np.testing.assert_array_equal(slide.features("imported").read(0, 12), features_of(0).astype(np.float16))
    assert (slide.patch_size_level0, slide.record.patch_size) == (256.0, patch_size)


def test_places_of_stamp_1_have_224_units_in_256_um(tmp_path: Path) -> None:
    _write_stamp(tmp_path / "made/a.h5", GRID // 256 * 224)
    labels = write_labels(tmp_path, ["a,1,0.25"], "slide_id,label,mpp")
    import_source(str(tmp_path / "made"), str(tmp_path / "store"), ImportConfig(format="stamp", labels=labels))
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    np.testing.assert_array_equal(slide.coords, GRID * 4)
    assert (slide.patch_size_level0, slide.record.patch_size) == (1024.0, 224)


def test_the_slide_s_own_file_tells_the_um_per_px_of_stamp_s_places(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((800, 1100, 3), np.uint8), tile=(256, 256), photometric="rgb",
        resolution=(1e4 / 0.5, 1e4 / 0.5), resolutionunit="CENTIMETER",
    )  # fmt: skip
    _write_stamp(tmp_path / "made/a.h5", GRID * 0.5, **STAMP)
    labels = write_labels(tmp_path, ["a,1,a.tif"], "slide_id,label,uri")
    import_source(str(tmp_path / "made"), str(tmp_path / "store"), ImportConfig(format="stamp", labels=labels))
    np.testing.assert_array_equal(PatchStore(str(tmp_path / "store")).slide("a").coords, GRID)


@pytest.mark.parametrize(
    ("coords", "attrs", "reason"),
    [
        (GRID * 0.5, STAMP, "coords in um, and no um/px of the slide; give mpp, or uri of the slide, in the labels"),
        (GRID * 0.5, {}, "coords 128 apart in an unknown unit; allowed: um, with the attribute tile_size_um"),
        (np.array([b"x"] * 24).reshape(12, 2), STAMP, "coords in um"),
        (np.array([b"x"] * 24).reshape(12, 2), {}, "coords None apart in an unknown unit"),
    ],
)
def test_stamp_s_places_of_unknown_size_are_quarantined(
    tmp_path: Path, coords: np.ndarray, attrs: dict[str, Any], reason: str
) -> None:
    _write_stamp(tmp_path / "made/a.h5", coords, **attrs)
    assert import_files(tmp_path, "stamp", ("a,0",)).quarantined["a"].startswith(reason)


TEXT_OF_ANOTHER = "root:x:0:0:root:/root:/bin/bash"


def _link_outside(file: h5py.File, other: Path) -> None:
    file["features"] = h5py.ExternalLink(str(other), "features")


def _link_soft(file: h5py.File, other: Path) -> None:
    file["elsewhere"] = h5py.ExternalLink(str(other), "features")
    file["features"] = h5py.SoftLink("/elsewhere")


def _lay_outside(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", (2, 8), "u1", external=[(str(other), 0, 16)])


def _make_virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((12, 16), "f4")
    layout[:] = h5py.VirtualSource(str(other), "features", (12, 16))
    file.create_virtual_dataset("features", layout)


def _link_group(file: h5py.File, other: Path) -> None:
    file["features"] = np.ones((12, 16), np.float32)
    file["coords"] = h5py.ExternalLink(str(other), "coords")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            lambda file, other: file.update({"features": h5py.ExternalLink(str(other), "features")}),
            "features is a ExternalLink",
        ),
        (_link_soft, "features is a SoftLink"),
        (_lay_outside, "features lies in other files"),
        (_make_virtual, "features lies in other files"),
        (_link_group, "coords is a ExternalLink"),
        (lambda file, _: file.create_dataset("features", (10**9, 10**6), "f4", chunks=(1, 10)), "features of shape"),
        (lambda file, _: file.create_dataset("features", (2**60, 1), "f8", chunks=(1, 1)), "features of shape"),
    ],
    ids=["external", "soft", "external storage", "virtual", "coords", "petabytes", "exabytes"],
)
def test_an_h5_reads_no_other_file_and_no_more_than_it_holds(
    tmp_path: Path, write: Callable[[h5py.File, Path], None], reason: str
) -> None:
    """The other file is a whole import of its own, or text that somebody else may not see."""
    other = tmp_path / "home/other.h5"
    write_h5(other, features_of(0))
    if write is _lay_outside:
        other.write_text(TEXT_OF_ANOTHER)
    (tmp_path / "made").mkdir()
    with h5py.File(tmp_path / "made/a.h5", "w") as file:
        write(file, other)
    write_h5(tmp_path / "made/b.h5", features_of(1))
    summary = import_files(tmp_path, "clam", ("a,0", "b,1"))
    assert summary.ok == ["b"]
    assert summary.quarantined["a"].startswith(reason)


@pytest.mark.parametrize("far", [3e9, 1e300, -(2.0**40)])
def test_coords_beyond_any_slide_are_quarantined(tmp_path: Path, far: float) -> None:
    write_h5(tmp_path / "made/a.h5", features_of(0))
    with h5py.File(tmp_path / "made/a.h5", "r+") as file:
        coords = file["coords"][...].astype(np.float64)
        coords[3, 1] = far
        del file["coords"]
        file["coords"] = coords
    assert import_files(tmp_path, "clam", ("a,0",)).quarantined["a"].startswith("coords reach ")


def _spoil_h5(folder: Path) -> None:
    """Slides that cannot be used, each in its own way, beside a and b, which can."""
    features = features_of(0)
    nan, huge = features.copy(), features.astype(np.float64)
    nan[2, 1], huge[0, 0] = np.nan, 1e39
    for name, rows in {
        "a": features,
        "b": features,
        "holes": nan,
        "huge": huge,
        "wide": features_of(0, width=7),
    }.items():
        write_h5(folder / f"{name}.h5", rows)
    write_h5(folder / "short.h5", features)
    cut_short(folder / "short.h5")
    write_h5(folder / "rows.h5", features, GRID[:-1])
    write_h5(folder / "flat.h5", features[0])
    write_h5(folder / "empty.h5", features[:0], GRID[:0])
    write_h5(folder / "lonely.h5", features[:1], GRID[:1])
    write_h5(folder / "outside.h5", features, **TRIDENT | {"level0_width": 700})
    (folder / "text.h5").write_text("no features here")
    with h5py.File(folder / "other.h5", "w") as file:
        file["embeddings"] = features


SPOILT = {
    "holes": "1 of 12 rows of features hold NaN or infinity",
    "huge": r"features reach 1e\+39, float32 holds 3.4e\+38 at most",
    "wide": "features 7 wide, most slides have 5",
    "short": "not readable as HDF5",
    "rows": "12 rows of features, 11 of coords; allowed: one place per row",
    "flat": r"features of shape \(5,\), type float32; allowed: numbers \(instance, feature\)",
    "empty": "no instances",
    "lonely": "no patch size: the source tells none and no two coords share a row; give --patch-size-level0",
    "outside": r"a patch begins at \(768, 512\), the slide measures 700 x 3000 px: another slide\?",
    "text": "not readable as HDF5",
    "other": "no features in it, but 1 other entries",
    "gone": "no file gone.h5 in ",
}


def test_every_slide_that_cannot_be_used_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    _spoil_h5(tmp_path / "made")
    rows = tuple(f"{name},{k % 2}" for k, name in enumerate(["a", "b", *SPOILT]))
    summary = import_files(tmp_path, "trident", rows)
    assert summary.ok == ["a", "b"]
    assert set(summary.quarantined) == set(SPOILT)
    for name, reason in SPOILT.items():
        assert re.search(reason, summary.quarantined[name]), summary.quarantined[name]
    write_h5(tmp_path / "made" / "gone.h5", features_of(3))
    write_h5(tmp_path / "made" / "wide.h5", features_of(4))
    again = import_files(tmp_path, "trident", rows)
    assert again.ok == ["a", "b", "wide", "gone"]
    assert again.skipped == len(rows) - 2


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "exabytes": ({"shape": (10**12, 10**6), "chunks": (1, 10**6)}, r"declares 4,000,000,000 GB; allowed: 64 GB"),
    "unwritten": ({"shape": (10**7, 1024), "chunks": (1000, 1024)}, r"declares 41 GB, has 0.0 MB; allowed: 200 times"),
    "scalar": ({"shape": ()}, r"features of shape \(\), type float32; allowed: numbers"),
    "ragged": ({"shape": (3,), "dtype": h5py.vlen_dtype(np.float32)}, "type object; allowed: numbers"),
    "no_space": ({"data": h5py.Empty("f4")}, "features has no values; allowed: numbers"),
}


def test_files_of_every_form_are_quarantined(tmp_path: Path) -> None:
    """None of them ends the import, or takes memory for what the file only declares."""
    made = tmp_path / "made"
    write_h5(made / "good.h5", features_of(0))
    (made / "empty.h5").write_bytes(b"")
    for name, (how, _) in FORMS.items():
        with h5py.File(made / f"{name}.h5", "w") as file:
            file.create_dataset("features", **{"dtype": "f4", **how})
    with h5py.File(made / "places.h5", "w") as file:
        file["features"] = features_of(0)
        file.create_dataset("coords", (10**9, 2), "i4", chunks=(1000, 2))
    rows = [f"{name},{k % 2}" for k, name in enumerate(["good", "empty", "places", *FORMS])]
    summary = import_files(tmp_path, "clam", tuple(rows))
    expected = {name: reason for name, (_, reason) in FORMS.items()}
    expected |= {"empty": "not readable as HDF5", "places": r"coords of shape .* declares 8 GB, has 0.0 MB"}
    assert summary.ok == ["good"]
    assert summary.quarantined.keys() == expected.keys()
    for name, reason in expected.items():
        assert re.search(reason, summary.quarantined[name]), (name, summary.quarantined[name])
