"""Slides as the field makes them, the small ones in ``tests/cases``: what each is, what is right, and why."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile

from milcore.cohort.manifest import Slide
from milcore.config import IngestConfig
from milcore.ingestion.slide import ingest_slide
from milcore.slides import open_slide
from milcore.slides.reader import Bounds
from milcore.store.store import PatchStore


class Case(NamedTuple):
    """What a file is read as, and the page that holds its pixels; test code makes the same kind in ``made_by``."""

    backend: str
    size: tuple[int, int]
    bounds: Bounds
    unread: tuple[tuple[int, int], ...]
    page: int | None
    outcome: str
    why: str
    made_by: str


CASES = {
    "01/kfb_bytes.svs": Case(
        "tiff:aperio", (1792, 1536), Bounds(0, 0, 1792, 1536), (), 0, "ok",
        "MPP = 0.5 stands in a description that is no UTF-8", "test_scale.py, kfbio",
    ),
    "05/cells.ome.tif": Case(
        "flat:tiff", (93, 131), Bounds(0, 0, 93, 131), (), 0, "too small: 93 x 131 px, one tile is 512 px of level 0",
        "0.25 um/px in its OME-XML; planes in strips; half a default patch wide", "test_ome.py",
    ),
    "05/ome_macro_first.ome.tif": Case(
        "tiff:ome", (1792, 1536), Bounds(0, 0, 1792, 1536), ((224, 192),), 1, "ok",
        "um/px and pixels of the largest image; the macro is told", "test_ome.py",
    ),
    "07/bounds.scn": Case(
        "openslide:leica", (6000, 5000), Bounds(2048, 1024, 1792, 1536), (), None, "ok",
        "coords in the slide's own px, the bounds recorded", "tests/leica.py",
    ),
    "n.tif": Case(
        "tiff:generic", (1024, 1024), Bounds(0, 0, 1024, 1024), (), 0, "ok",
        "the slide that the tables name", "write_pyramid",
    ),
}  # fmt: skip
MPP = {"05/cells.ome.tif": 0.25}
IN_THE_CLONE = Path(__file__).resolve().parents[1] / "cases"
TOLD = {
    "05/ome_macro_first.ome.tif": "a: of 2 images in the file the largest is read, 1,792 x 1,536 px; not read: "
    "224 x 192 px; save a further region of interest as a slide of its own",
}


@pytest.fixture
def case_file(name: str, request: pytest.FixtureRequest) -> Path:
    small = IN_THE_CLONE / name
    beside: Path = small if small.exists() else request.getfixturevalue("shared_cases") / name
    return beside


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_read_as_its_row_says(
    case_file: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case, path = CASES[name], case_file
    with open_slide(path) as slide:
        assert (slide.backend, slide.size, slide.bounds) == (case.backend, case.size, case.bounds), case.why
        assert slide.mpp == pytest.approx(MPP.get(name, 0.5)), case.why
        assert slide.unread_images == case.unread, case.why
        if case.page is not None:
            expected = tifffile.imread(path, key=case.page)
            expected = np.moveaxis(expected, 0, -1) if expected.shape[0] == 3 else expected
            np.testing.assert_array_equal(slide.read(0, 0, 0, *case.size), expected)
    store = PatchStore(str(tmp_path))
    outcome = ingest_slide(Slide("a", str(path), 0, "a", "", None, None, None), store, IngestConfig())
    assert (outcome.reason or outcome.status).startswith(case.outcome), case.why
    told = [line for line in capsys.readouterr().err.splitlines() if "in the file the largest is read" in line]
    assert told == ([TOLD[name]] if case.unread else []), case.why
    scan = getattr(store.record("a"), "scan", None)
    assert [tuple(size) for size in getattr(scan, "unread_images", None) or ()] == list(case.unread), case.why
