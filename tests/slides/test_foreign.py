"""Formats that are not read: one line names the format and what converts it."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from milcore.cohort.manifest import Slide
from milcore.config import IngestConfig, ReaderChoice
from milcore.errors import SlideError
from milcore.ingestion.slide import ingest_slide
from milcore.slides import open_slide
from milcore.store.store import PatchStore


def _reason(path: Path | str, folder: Path) -> str | None:
    slide = Slide("a", str(path), 0, "a", "", None, None, None)
    return ingest_slide(slide, PatchStore(str(folder / "store")), IngestConfig(patch_size=64)).reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.lif", "a Leica LIF; convert it to OME-TIFF with bioformats2raw and raw2ometiff, or with QuPath"),
        ("a.VSI", "an Olympus VSI, whose slide lies in the folder beside it; convert it to OME-TIFF with"),
        ("a.ome.zarr", "an OME-Zarr; convert it to OME-TIFF with raw2ometiff, or with QuPath"),
        ("a.zarr.zip", "an OME-Zarr; unpack it, and convert it"),
        ("a.isyntax", "a Philips iSyntax; convert it to a tiled pyramidal TIFF with the scanner's own software"),
    ],
)
def test_a_format_that_is_not_read_is_named_with_what_converts_it(tmp_path: Path, name: str, reason: str) -> None:
    """A VSI opens as a TIFF that holds a preview only; an OME-Zarr is a folder, on S3 no object at all."""
    path = tmp_path / name
    if name.endswith(".zarr"):
        path.mkdir()
    else:
        pixels = np.full((256, 256, 3), (200, 110, 170), np.uint8)
        tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", resolution=(2e4, 2e4), resolutionunit=3)
    assert str(_reason(path, tmp_path)).startswith(reason)
    assert str(_reason(f"s3://bucket/{name}/", tmp_path)).startswith(reason)


@pytest.mark.parametrize("reader", ["auto", "tiff"])
def test_a_czi_that_openslide_cannot_open_is_named_with_what_converts_it(tmp_path: Path, reader: ReaderChoice) -> None:
    """OpenSlide 4.0.1 reads bright-field CZI itself; the first bytes tell the format, whatever the name."""
    (tmp_path / "a.svs").write_bytes(b"ZISRAWFILE" + bytes(1000))
    reason = "a Zeiss CZI; convert it to OME-TIFF with bioformats2raw and raw2ometiff, or with QuPath$"
    with pytest.raises(SlideError, match=reason), open_slide(tmp_path / "a.svs", reader):
        pass


def test_a_geotiff_without_um_per_px_is_named_with_what_converts_it(tmp_path: Path) -> None:
    """Its scale is of a map; with um/px in the resolution tags it is read like any other."""
    pixels = np.full((256, 256, 3), 244, np.uint8)
    pixels[:192, :192] = np.clip(np.random.default_rng(0).normal((200, 110, 170), 25, (192, 192, 3)), 0, 255)
    tags = [
        (33550, 12, 3, (0.5, 0.5, 0.0), True),
        (33922, 12, 6, (0.0,) * 6, True),
        (34735, 3, 8, (1, 1, 0, 1, 1024, 0, 1, 1), True),
    ]
    how = {"tile": (64, 64), "photometric": "rgb", "extratags": tags, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **how)
    reason = _reason(tmp_path / "a.tif", tmp_path)
    assert reason == (
        "no mpp: a GeoTIFF has the scale of a map; convert it with vips tiffsave --tile --pyramid --xres PX_PER_MM; "
        "give --default-mpp, or an mpp in the manifest"
    )
    tifffile.imwrite(tmp_path / "b.tif", pixels, resolution=(2e4, 2e4), resolutionunit=3, **how)
    assert _reason(tmp_path / "b.tif", tmp_path) is None
