"""The cohort page tells of every slide, stands alone, and can be sorted by a click."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from milcore.config import IngestConfig
from milcore.ingestion.cohort import ingest, plan_cohort
from milcore.ingestion.overview import write_cohort_page
from milcore.slides.write_pyramid import write_pyramid


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
    rows = re.findall(r'<tr class="(\w+)">\s*<th scope="row" class="short">(\w)', page)
    assert rows == [("ok", "a"), ("quarantined", "b"), ("missing", "c")]
    assert "1 slides ok, 1 quarantined, 1 not ingested yet" in page
    assert '<td class="reason">no tissue</td>' in page
    assert '<td class="number" data-value="8">8</td>' in page
    assert "&lt;b&gt;p&lt;/b&gt;" in page


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
