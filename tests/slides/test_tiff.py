"""Tiles of every compression and layout equal those of tifffile, an independent reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from milcore.errors import SlideError
from milcore.slides import open_slide

EDGE = 128


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Smooth with a little noise, 300 x 400, so that the last tiles of rows and columns stand over the edge."""
    y, x = np.mgrid[:300, :400]
    smooth = np.stack([100 + x * 0.3, 60 + y * 0.5, 150 + 20 * np.sin(x / 17)], -1)
    return (smooth + np.random.default_rng(0).integers(0, 4, smooth.shape)).astype(np.uint8)


def _write(path: Path, pixels: np.ndarray, **how: Any) -> None:
    tile = (EDGE, EDGE)
    tifffile.imwrite(path, pixels, tile=tile, photometric="rgb", resolution=(20_000, 20_000), resolutionunit=3, **how)


def _check(path: Path) -> None:
    """One whole tile, one place across four tiles, one over the slide's lower right corner."""
    expected = np.full((600, 600, 3), 255, np.uint8)
    expected[:300, :400] = tifffile.imread(path, key=0)[..., :3]
    with open_slide(path) as slide:
        assert (slide.backend, slide.size) == ("tiff:generic", (400, 300))
        assert slide.mpp == pytest.approx(0.5)
        for x, y, edge in ((128, 0, 128), (100, 90, 150), (350, 250, 200)):
            np.testing.assert_array_equal(slide.read(x, y, 0, edge, edge), expected[y : y + edge, x : x + edge])


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "lzw", "predictor": True},
        {"compression": "deflate"},
        {"compression": "adobe_deflate", "predictor": True},
        {"compression": "packbits"},
        {"compression": "zstd"},
        {"compression": "jpeg2000", "compressionargs": {"level": 0}},
        {"compression": "jpeg2000", "compressionargs": {"level": 35}},
        {"compression": "aperio_jp2000_rgb"},
        {"compression": "webp", "compressionargs": {"level": 101}},
        {"compression": "webp", "compressionargs": {"level": 80}},
        {"compression": "jpeg", "compressionargs": {"level": 80}},
    ],
    ids=lambda how: "-".join(str(value) for value in how.values()) or "none",
)
def test_every_compression_equals_tifffile(tmp_path: Path, pixels: np.ndarray, how: dict[str, Any]) -> None:
    _write(tmp_path / "a.tiff", pixels, **how)
    _check(tmp_path / "a.tiff")


def test_big_endian_and_bigtiff_are_read(tmp_path: Path, pixels: np.ndarray) -> None:
    _write(tmp_path / "a.tiff", pixels, compression="lzw", byteorder=">", bigtiff=True)
    _check(tmp_path / "a.tiff")


def test_transparency_is_laid_on_white(tmp_path: Path, pixels: np.ndarray) -> None:
    """Half a stain of 100 on white: 100 * 128 / 255 + 255 * 127 / 255 = 177.2."""
    rgba = np.full((256, 256, 4), (100, 100, 100, 128), np.uint8)
    _write(tmp_path / "a.tiff", rgba, compression="deflate", extrasamples=["unassalpha"])
    with open_slide(tmp_path / "a.tiff") as slide:
        assert (slide.read(0, 0, 0, 256, 256) == 177).all()


def test_levels_of_an_ome_tiff_lie_in_subifds(tmp_path: Path, pixels: np.ndarray) -> None:
    """Its scale comes from the XML, in nm; the second level is the halved image, and is read as it was written."""
    half = pixels.reshape(150, 2, 200, 2, 3).mean((1, 3)).astype(np.uint8)
    scale = {"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 250.0, "PhysicalSizeYUnit": "nm"}
    common: dict[str, Any] = {"tile": (EDGE, EDGE), "photometric": "rgb", "compression": "zstd"}
    with tifffile.TiffWriter(tmp_path / "a.ome.tiff", ome=True) as tiff:
        tiff.write(pixels, subifds=1, metadata={"axes": "YXS", **scale}, **common)
        tiff.write(half, subfiletype=1, **common)
    with open_slide(tmp_path / "a.ome.tiff") as slide:
        assert (slide.backend, slide.level_downsamples) == ("tiff:ome", (1.0, 2.0))
        assert slide.mpp == pytest.approx(0.25)
        np.testing.assert_array_equal(slide.read(20, 10, 1, 150, 130), half[10:140, 20:170])
        np.testing.assert_array_equal(slide.read(20, 10, 0, 150, 130), pixels[10:140, 20:170])


@pytest.mark.parametrize(
    ("values", "photometric", "reason"),
    [
        (np.zeros((256, 256), np.uint8), "minisblack", "1 sample a pixel: greyscale or fluorescence"),
        (np.zeros((256, 256, 3), np.uint16), "rgb", "16 bits a sample; allowed: 8"),
        (np.zeros((256, 256, 5), np.uint8), "rgb", "5 samples a pixel, photometric 2; allowed: RGB or YCbCr"),
    ],
    ids=["grey", "deep", "channels"],
)
def test_images_other_than_8_bit_colour_are_refused(
    tmp_path: Path, values: np.ndarray, photometric: str, reason: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", values, tile=(EDGE, EDGE), photometric=photometric, planarconfig=1)
    with pytest.raises(SlideError, match=reason), open_slide(tmp_path / "a.tiff"):
        pass


def test_a_tile_with_a_damaged_byte_count_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    """Its length in the directory is damaged; no memory of that size is allocated."""
    _write(tmp_path / "a.tiff", pixels)
    with tifffile.TiffFile(tmp_path / "a.tiff", mode="r+") as tiff:
        tiff.pages[0].tags["TileByteCounts"].overwrite([2**32 - 1] + [EDGE * EDGE * 3] * 11, dtype=4)
    with open_slide(tmp_path / "a.tiff") as slide:
        with pytest.raises(SlideError, match=r"tile 0, 0 of level 0 has 4,294,967,295 bytes by the TIFF directory"):
            slide.read(0, 0, 0, EDGE, EDGE)
        assert slide.read(EDGE, 0, 0, EDGE, EDGE).shape == (EDGE, EDGE, 3)


def test_a_level_without_pixels_is_left_out(tmp_path: Path, pixels: np.ndarray) -> None:
    """Its width in the directory is damaged; the other level is read, and alone it is no slide."""
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        for level in (pixels[:2, :2], pixels):
            tiff.write(level, tile=(EDGE, EDGE), photometric="rgb", resolution=(20_000, 20_000), resolutionunit=3)
    with tifffile.TiffFile(tmp_path / "a.tiff", mode="r+") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(0)
    with open_slide(tmp_path / "a.tiff") as slide:
        assert (slide.size, slide.level_downsamples) == ((400, 300), (1.0,))
    with tifffile.TiffFile(tmp_path / "a.tiff", mode="r+") as tiff:
        tiff.pages[1].tags["ImageWidth"].overwrite(0)
    with pytest.raises(SlideError, match="OpenSlide cannot open it"), open_slide(tmp_path / "a.tiff"):
        pass
