"""Annotations are read before the first slide is cut, and compared with the tissue after the last."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from typer.testing import CliRunner

from milcore.cli.main import app
from milcore.cohort.manifest import read_manifest
from milcore.config import AnnotationConfig
from milcore.errors import DamageError, InputError
from milcore.ingestion.annotations import tissue_share
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.annotation_record import AnnotationRecord
from milcore.store.store import PatchStore
from tests.leica import write_scn

CORNER, SIZE = (512, 256), (1536, 1024)


def tissue() -> np.ndarray:
    """White, but for a stained square at (64, 64) to (256, 256)."""
    pixels = np.full((320, 384, 3), 244, np.uint8)
    pixels[64:256, 64:256] = (200, 120, 170)
    return pixels


def write_square(path: Path, left: int, top: int, name: str | None = None) -> None:
    """A GeoJSON of a square of 160 px."""
    ring = [[left, top], [left + 160, top], [left + 160, top + 160], [left, top + 160], [left, top]]
    properties = {} if name is None else {"classification": {"name": name}}
    geometry = {"type": "Polygon", "coordinates": [ring]}
    path.write_text(json.dumps([{"type": "Feature", "geometry": geometry, "properties": properties}]))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A folder with a slide that has bounds and one that has none, and a GeoJSON on the tissue of each."""
    write_scn(tmp_path / "a.scn", tissue(), CORNER, SIZE)
    write_pyramid(tmp_path / "b.tiff", tissue(), 0.5, 1)
    rows = ["a,a.scn,1,a.geojson", "b,b.tiff,1,b.geojson", "c,b.tiff,0,"]
    (tmp_path / "manifest.csv").write_text("\n".join(["slide_id,uri,label,annotation", *rows]) + "\n")
    for name in "ab":
        write_square(tmp_path / f"{name}.geojson", 80, 80)
    return tmp_path


def ingest(folder: Path, *words: str, code: int = 0) -> str:
    """Stderr of the command."""
    command = ["ingest", str(folder / "manifest.csv"), str(folder / "store"), "--patch-size", "64", "--workers", "0"]
    shown = CliRunner().invoke(app, [*command, *words], catch_exceptions=False)
    assert shown.exit_code == code, shown.output
    return shown.stderr


def record(folder: Path) -> AnnotationRecord:
    return PatchStore(str(folder / "store")).annotation_record()


def test_an_annotation_on_the_tissue_is_recorded_and_nothing_is_said(cohort: Path) -> None:
    assert "annotation" not in ingest(cohort)
    assert set(record(cohort).sha256) == {"a", "b"}
    slide = PatchStore(str(cohort / "store")).slide("a")
    assert (slide.record.size_level0, slide.bounds) == (SIZE, (*CORNER, 384, 320))
    assert slide.bounds_corner == CORNER
    # patches stay in the slide's own px: those wholly in the square of tissue, which begins at (576, 320)
    assert [576, 320] in slide.coords.tolist()
    assert PatchStore(str(cohort / "store")).slide("b").bounds == (0, 0, 384, 320)


def test_an_annotation_outside_the_tissue_is_told(cohort: Path) -> None:
    """From the slide's corner the square lies where nothing was scanned."""
    (line,) = [line for line in ingest(cohort, "--annotation-origin", "slide").splitlines() if "annotation" in line]
    assert line.startswith("annotation of slide a: only 0% of its area lies on tissue")
    assert "--annotation-origin" in line
    assert record(cohort).config == AnnotationConfig(annotation_origin="slide")


def test_an_annotation_that_was_replaced_is_compared_though_its_slide_is_up_to_date(cohort: Path) -> None:
    ingest(cohort)
    before = record(cohort)
    write_square(cohort / "b.geojson", 200, 80)
    (line,) = [line for line in ingest(cohort).splitlines() if "annotation" in line]
    assert line.startswith("annotation of slide b: only 35% of its area lies on tissue")  # 56 of 160 px
    after = record(cohort)
    assert after.sha256["a"] == before.sha256["a"]
    assert after.sha256["b"] != before.sha256["b"]


@pytest.mark.parametrize(("left", "share"), [(0, 1.0), (50, 0.5), (100, 0.0), (-50, 0.5), (-150, 0.0)])
def test_the_share_on_tissue_is_that_of_the_area(left: int, share: float) -> None:
    """Tissue is the left half of a slide of 200 x 100 px; the square measures 100 px."""
    mask = np.zeros((10, 20), bool)
    mask[:, :10] = True
    assert tissue_share(shapely.box(left, 0, left + 100, 100), mask, (200, 100)) == pytest.approx(share, abs=1e-9)


def test_an_area_thinner_than_the_grid_has_a_share() -> None:
    thin = shapely.Polygon([(0, 0), (100, 100), (100, 100.001)])
    assert tissue_share(thin, np.ones((10, 10), bool), (200, 200)) == pytest.approx(1.0)
    assert np.isnan(tissue_share(shapely.Polygon(), np.ones((10, 10), bool), (200, 200)))


def test_annotations_that_cannot_be_read_end_the_command_before_a_slide_is_cut(cohort: Path) -> None:
    (cohort / "a.geojson").write_text('[{"type": "Feature", "geometry": null}, {"type": "Polygon", "coordinates": []}]')
    (cohort / "b.geojson").unlink()
    command = ["ingest", str(cohort / "manifest.csv"), str(cohort / "store")]
    with pytest.raises(InputError) as raised:
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert raised.value.line == (
        f"2 annotation(s) cannot be read: annotation of slide a, {cohort}/a.geojson, feature 2: expected rings of "
        f"positions, got none; delete the feature or redraw it; annotation of slide b: expected a file, got nothing at "
        f"{cohort}/b.geojson; correct the manifest's annotation"
    )
    assert not (cohort / "store").exists()


def test_what_does_not_count_is_told(cohort: Path) -> None:
    (cohort / "b.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert "annotation of slide b: it holds no area, so that the slide counts as one without annotation" in ingest(
        cohort
    )


def test_classes_are_selected_recorded_and_told(cohort: Path) -> None:
    write_square(cohort / "a.geojson", 80, 80, "Tumor")
    write_square(cohort / "b.geojson", 80, 80, "Stroma")
    assert "several classes, which all count as positive: Tumor (1), Stroma (1); --annotation-class" in ingest(cohort)
    stderr = ingest(cohort, "--annotation-class", "Tumor,Necrosis")
    assert "annotation_class: no annotation has the class(es) Necrosis" in stderr
    assert "all count" not in stderr
    assert record(cohort).config.annotation_class == ("Tumor", "Necrosis")
    with pytest.raises(InputError, match="got tumour; allowed: Stroma, Tumor"):
        ingest(cohort, "--annotation-class", "tumour")


def test_a_cohort_without_annotations_has_no_record(cohort: Path) -> None:
    (cohort / "manifest.csv").write_text("slide_id,uri,label\nc,b.tiff,0\n")
    ingest(cohort)
    assert not (cohort / "store/annotations.json").exists()


def test_a_lost_record_is_an_error_until_it_is_made_again(cohort: Path) -> None:
    ingest(cohort)
    file = cohort / "store/annotations.json"
    before = file.read_bytes()
    file.unlink()
    with pytest.raises(
        DamageError, match=r"annotations\.json: expected the record of the cohort's annotations, got no"
    ):
        record(cohort)
    with pytest.raises(DamageError):
        CliRunner().invoke(app, ["info", str(cohort / "store"), "--verify"], catch_exceptions=False)
    ingest(cohort)
    assert file.read_bytes() == before


def test_a_store_of_an_earlier_version_without_a_record_gains_it(cohort: Path) -> None:
    """Its manifest says nothing of a record; ingested again, it does."""
    ingest(cohort)
    store = PatchStore(str(cohort / "store"))
    (cohort / "store/annotations.json").unlink()
    store.write_manifest(read_manifest(str(cohort / "manifest.csv")))
    assert record(cohort) == AnnotationRecord()
    ingest(cohort)
    assert set(record(cohort).sha256) == {"a", "b"}
    (cohort / "store/annotations.json").unlink()
    with pytest.raises(DamageError):
        record(cohort)


def test_a_damaged_record_is_made_again(cohort: Path) -> None:
    ingest(cohort)
    file = cohort / "store/annotations.json"
    before = file.read_bytes()
    for damage in (b"{", b"[]", b'{"files": {}, "settings": 3}', before.replace(b'"a": "', b'"a": "0')):
        file.write_bytes(damage)
        ingest(cohort)
        assert file.read_bytes() == before
