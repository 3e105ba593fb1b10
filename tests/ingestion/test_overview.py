"""The cohort page tells of every slide, stands alone, and can be sorted by a click."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from milcore.cohort.manifest import Manifest, Slide
from milcore.config import IngestConfig
from milcore.ingestion.cohort import ingest, plan_cohort
from milcore.ingestion.overview import MOST_PICTURES, choose_pictures, write_cohort_page
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.slide_record import SlideRecord, TileCounts
from milcore.store.store import PatchStore


@pytest.fixture
def page(tmp_path: Path) -> str:
    """A slide stained on its left half, a blank one, one that was never ingested; a name that would be markup."""
    pixels = np.full((256, 256, 3), (243, 242, 244), np.uint8)
    write_pyramid(tmp_path / "blank.tiff", pixels, 0.5, 1)
    pixels[:, :128] = (200, 120, 170)
    write_pyramid(tmp_path / "half.tiff", pixels, 0.5, 1, quality=95)
    rows = "slide_id,uri,label,patient_id\na,half.tiff,tumour,<b>p</b>\nb,blank.tiff,normal,q\n"
    (tmp_path / "m.csv").write_text(rows)
    plan_cohort(str(tmp_path / "m.csv"), str(tmp_path / "store"))
    list(ingest(str(tmp_path / "store"), IngestConfig(patch_size=64), 0))
    (tmp_path / "m.csv").write_text(f"{rows}c,c.tiff,normal,r\n")
    plan_cohort(str(tmp_path / "m.csv"), str(tmp_path / "store"))
    return Path(write_cohort_page(str(tmp_path / "store"))).read_text()


def test_every_slide_has_a_row_with_its_status(page: str) -> None:
    rows = re.findall(r'<tr class="(\w+)"[^>]*>\s*<th scope="row" class="short">(\w)', page)
    assert rows == [("ok", "a"), ("quarantined", "b"), ("missing", "c")]
    assert "1 slides ok, 1 quarantined, 1 not ingested yet" in page
    assert '<td class="reason">no tissue</td>' in page
    assert '<td class="number" data-value="8">8</td>' in page
    assert "&lt;b&gt;p&lt;/b&gt;" in page


def test_a_page_that_would_be_equal_is_not_written_again(page: str, tmp_path: Path) -> None:
    """Nor are the pictures read for it; a slide that is relabelled or ingested anew changes it."""
    store, file = PatchStore(str(tmp_path / "store")), tmp_path / "store/cohort.html"

    def is_written() -> bool:
        before = file.stat().st_ino
        assert write_cohort_page(store.uri) == str(file)
        return file.stat().st_ino != before

    thumbnail = tmp_path / "store/slides/a.zarr/thumbnail"
    thumbnail.rename(tmp_path / "thumbnail")
    assert not is_written()
    (tmp_path / "thumbnail").rename(thumbnail)
    assert file.read_text() == page
    rows = (tmp_path / "m.csv").read_text()
    for changed in (rows.replace("a,half.tiff,tumour", "a,half.tiff,normal"), rows):
        (tmp_path / "m.csv").write_text(changed)
        plan_cohort(str(tmp_path / "m.csv"), store.uri)
        assert is_written()
        assert not is_written()
    pixels = np.full((256, 256, 3), (200, 120, 170), np.uint8)
    write_pyramid(tmp_path / "half.tiff", pixels, 0.5, 1, quality=95)
    list(ingest(store.uri, IngestConfig(patch_size=64), 0))
    assert is_written()
    file.write_text(file.read_text()[:-1])
    assert is_written()


def test_the_page_needs_nothing_else(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "http" not in page


def test_what_is_no_tissue_is_dimmed(page: str) -> None:
    (picture,) = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).astype(int)
    assert np.abs(shown[20:170, 10:80] - (200, 120, 170)).max() < 25
    assert shown[20:170, 110:180].max() < 130


def test_an_image_that_was_not_read_is_shown(tmp_path: Path) -> None:
    pixels = np.full((256, 256, 3), (200, 120, 170), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        for image in (pixels, pixels[:192]):
            tiff.write(image, tile=(64, 64), photometric="rgb", resolution=(2e4, 2e4), resolutionunit=3, metadata=None)
    (tmp_path / "m.csv").write_text("slide_id,uri,label\na,a.tiff,1\n")
    plan_cohort(str(tmp_path / "m.csv"), str(tmp_path / "store"))
    list(ingest(str(tmp_path / "store"), IngestConfig(patch_size=64), 0))
    page = Path(write_cohort_page(str(tmp_path / "store"))).read_text()
    assert "of 2 images in the file the largest is read, 256 x 256 px; not read: 256 x 192 px; save a further" in page


def test_a_page_of_many_slides_pages_and_says_so(tmp_path: Path) -> None:
    """Slides that are planned and not ingested yet: a row each."""
    store = PatchStore(str(tmp_path / "store"))
    slides = tuple(Slide(f"s{k:04d}", f"{k}.tiff", 0, f"p{k:04d}", "", None, None, None) for k in range(1500))
    store.write_manifest(Manifest(slides, ("0", "1")))
    page = Path(write_cohort_page(store.uri)).read_text()
    first, more = page.split('<template id="slides-more">')
    assert first.count('<tr class="missing"') == 500
    assert more.count('<tr class="missing"') == 1000
    assert "Counts are of all slides. Pages of 500 slides; without script and in print, one page." in page
    assert "1500 of 1500 slides" in page
    assert len(more) / 1000 < 700


def test_of_many_thumbnails_those_of_the_likeliest_mistakes_are_shown() -> None:
    """Slides of ever more tissue, of which some have tiles that cannot be read."""
    records = [
        SlideRecord(f"s{k:05d}", status="ok", counts=TileCounts(10_000, k, int(4000 <= k < 4600), k))
        for k in range(10_000)
    ]
    quarter = MOST_PICTURES // 4
    chosen = [int(record.slide_id[1:]) for record in choose_pictures(records)]
    assert chosen == sorted(chosen)
    assert len(chosen) == MOST_PICTURES
    assert chosen[:quarter] == list(range(quarter))
    assert chosen[-quarter:] == list(range(10_000 - quarter, 10_000))
    assert set(range(4000, 4000 + quarter)) <= set(chosen)
    drawn = set(chosen[quarter:-quarter]) - set(range(4000, 4000 + quarter))
    assert len(drawn) == quarter
    assert max(drawn) - min(drawn) > 5000
    assert choose_pictures(records[:MOST_PICTURES]) == records[:MOST_PICTURES]
