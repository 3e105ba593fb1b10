"""Um/px of a slide from wherever files carry it, and none where only a screen's or printer's resolution is there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from milcore.cohort.manifest import Slide
from milcore.config import IngestConfig
from milcore.ingestion.slide import ingest_slide
from milcore.ingestion.slide_result import SlideOutcome
from milcore.slides import open_slide
from milcore.slides.mpp import magnification_mpp
from milcore.store.slide_record import SlideMpp
from milcore.store.store import PatchStore

KFBIO = b"Aperio Format Scanned By KFBIO\r\n512x512 (256x256)|AppMag = 20|MPP = 0.500000|Time-Used = \x03(:.)\x8d,"
# what a TIFF holds -> um/px, magnification, why
TIFFS: dict[str, tuple[dict[str, Any], float | None, float | None, str]] = {
    "cm": ({"resolution": (20_000, 20_000), "resolutionunit": 3}, 0.5, None, "20,000 px a cm"),
    "inch": ({"resolution": (50_800, 50_800), "resolutionunit": 2}, 0.5, None, "50,800 px an inch"),
    "screen": ({"resolution": (72, 72), "resolutionunit": 2}, None, None, "353 um/px is no microscope's"),
    "no unit": ({"resolution": (2, 2), "resolutionunit": 1}, None, None, "2 px of an unknown unit"),
    "imagej": (
        {"resolution": (2, 2), "resolutionunit": 1, "description": "ImageJ=1.54f\nunit=micron\nloop=false\n"},
        0.5, None, "2 px a micron",
    ),
    "imagej escaped": (
        {"resolution": (4, 4), "resolutionunit": 1, "description": "ImageJ=1.54f\nunit=\\u00B5m\n"},
        0.25, None, "4 px a um, as ImageJ escapes it",
    ),
    "imagej px": (
        {"resolution": (2, 2), "resolutionunit": 1, "description": "ImageJ=1.54f\nunit=pixel\n"},
        None, None, "2 px a px",
    ),
    "motic": (
        {"description": "Motic|AppMag = 40|MPP = 0.263", "resolution": (72, 72), "resolutionunit": 2},
        0.263, 40.0, "Motic writes MPP = as Aperio does, under another name",
    ),
    "kfbio": ({"description": KFBIO}, 0.5, 20.0, "the description is no UTF-8"),
    "aperio comma": ({"description": "Aperio x|MPP = 0,25"}, 0.25, None, "a decimal comma"),
    "aperio without": (
        {"description": "Aperio x|AppMag = 40", "resolution": (20_000, 20_000), "resolutionunit": 3},
        None, 40.0, "the tags of an Aperio slide are not believed",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.full((512, 512, 3), (200, 120, 170), np.uint8)


@pytest.mark.parametrize("tile", [(256, 256), None], ids=["tiles", "strips"])
@pytest.mark.parametrize("name", TIFFS)
def test_a_tiff_has_the_scale_that_it_carries(
    tmp_path: Path, pixels: np.ndarray, name: str, tile: tuple[int, int] | None
) -> None:
    how, mpp, magnification, reason = TIFFS[name]
    tifffile.imwrite(tmp_path / "a.tiff", pixels, tile=tile, photometric="rgb", metadata=None, **how)
    with open_slide(tmp_path / "a.tiff") as slide:
        assert slide.backend.startswith("tiff:" if tile else "flat:tiff")
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp)), reason
        assert slide.magnification == magnification


@pytest.mark.parametrize(("dpi", "mpp"), [(None, None), (96, None), (600, None), (50_800, 0.5), (25_400, 1.0)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_plain_image_has_the_scale_of_a_microscope_only(
    tmp_path: Path, pixels: np.ndarray, suffix: str, dpi: int | None, mpp: float | None
) -> None:
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **({} if dpi is None else {"dpi": (dpi, dpi)}))
    with open_slide(tmp_path / f"a.{suffix}") as slide:
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-4))


def test_further_pages_of_a_plain_tiff_are_counted(tmp_path: Path, pixels: np.ndarray) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        for image, reduced in ((pixels, 0), (pixels[:400], 0), (pixels[:64, :64], 1)):
            tiff.write(image, photometric="rgb", metadata=None, subfiletype=reduced)
    with open_slide(tmp_path / "a.tiff") as slide:
        assert (slide.size, slide.unread_images) == ((512, 512), ((512, 400),))


def test_further_tiled_pages_are_counted(tmp_path: Path, pixels: np.ndarray) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        for image in (pixels, pixels[:300], pixels[::2, ::2]):
            tiff.write(np.ascontiguousarray(image), photometric="rgb", metadata=None, tile=(256, 256))
    with open_slide(tmp_path / "a.tiff") as slide:
        assert (slide.level_downsamples, slide.unread_images) == ((1.0, 2.0), ((512, 300),))


@pytest.mark.parametrize(
    ("magnification", "mpp"), [(40.0, 0.25), (20.0, 0.5), (5.0, 2.0), (0.0, None), (None, None), (1e-9, None)]
)
def test_an_objective_of_40_is_taken_for_a_quarter_um(magnification: float | None, mpp: float | None) -> None:
    assert magnification_mpp(magnification) == mpp


def ingest(folder: Path, mpp: float | None = None, **settings: Any) -> tuple[SlideOutcome, SlideMpp | None]:
    store = PatchStore(str(folder / "store"))
    slide = Slide("a", str(folder / "a.svs"), 0, "a", "", mpp, None, None)
    outcome = ingest_slide(slide, store, IngestConfig(patch_size=64, **settings))
    record = store.record("a")
    return outcome, None if record is None else record.mpp


def test_um_px_from_the_objective_must_be_asked_for(tmp_path: Path, pixels: np.ndarray) -> None:
    """A slide of TCGA: AppMag and no MPP."""
    description = "Aperio Image Library v10|AppMag = 40"
    tifffile.imwrite(
        tmp_path / "a.svs", pixels, tile=(256, 256), photometric="rgb", metadata=None, description=description
    )
    outcome, _ = ingest(tmp_path)
    assert outcome.reason is not None
    assert outcome.reason.endswith("give --default-mpp, or an mpp in the manifest, or --mpp-from-magnification (40x)")
    outcome, mpp = ingest(tmp_path, mpp_from_magnification=True, default_mpp=0.5)
    assert (outcome.status, mpp) == ("ok", SlideMpp(0.25, 0.5, 0.5, "magnification"))
    outcome, mpp = ingest(tmp_path, default_mpp=0.5)
    assert (outcome.skipped, mpp) == (False, SlideMpp(0.5, 0.5, 0.5, "default_mpp"))
    outcome, mpp = ingest(tmp_path, mpp=0.25, mpp_from_magnification=True)
    assert (outcome.skipped, mpp) == (False, SlideMpp(0.25, 0.5, 0.5, "manifest"))
    assert ingest(tmp_path, mpp=0.25)[0].skipped
