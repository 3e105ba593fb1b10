"""The pyramid writer: its files as OpenSlide reads them, and the input it refuses."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from milcore.errors import InputError
from milcore.slides.write_pyramid import write_pyramid

PINK = (231, 150, 189)


def two_halves(width: int, height: int) -> np.ndarray:
    pixels = np.full((height, width, 3), 240, np.uint8)
    pixels[:, : width // 2] = PINK
    return pixels


def test_openslide_opens_it_as_a_generic_tiff_with_its_levels_and_mpp(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "slide.tiff", two_halves(1030, 517), mpp=0.325, levels=3)
    with openslide.OpenSlide(str(tmp_path / "slide.tiff")) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.325, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.325, rel=1e-6)
        assert slide.level_dimensions == ((1030, 517), (515, 259), (258, 130))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_shows_the_colours_in_their_places(tmp_path: Path, level: int) -> None:
    write_pyramid(tmp_path / "slide.tiff", two_halves(1024, 512), mpp=0.5, levels=3)
    with openslide.OpenSlide(str(tmp_path / "slide.tiff")) as slide:
        left = np.array(slide.read_region((100, 100), level, (8, 8)).convert("RGB"))
        right = np.array(slide.read_region((900, 400), level, (8, 8)).convert("RGB"))
    np.testing.assert_allclose(left.reshape(-1, 3), np.broadcast_to(PINK, (64, 3)), atol=2)
    np.testing.assert_allclose(right, 240, atol=2)


def test_a_reduced_px_is_the_mean_of_the_four_under_it() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[::2, ::2] = 200  # one px of every four, so each block's mean is 50
    stream = io.BytesIO()
    write_pyramid(stream, pixels, mpp=1.0, levels=2, quality=100)
    with tifffile.TiffFile(io.BytesIO(stream.getvalue())) as tiff:
        np.testing.assert_allclose(tiff.pages[1].asarray(), 50, atol=1)


def test_pages_are_tiled_jpegs_and_all_but_the_first_are_marked_as_reduced() -> None:
    stream = io.BytesIO()
    write_pyramid(stream, two_halves(600, 300), mpp=0.5, levels=2)
    with tifffile.TiffFile(io.BytesIO(stream.getvalue())) as tiff:
        assert [page.subfiletype for page in tiff.pages] == [0, 1]
        assert {page.compression for page in tiff.pages} == {tifffile.COMPRESSION.JPEG}
        assert {(page.tilewidth, page.tilelength) for page in tiff.pages} == {(256, 256)}


def test_equal_pixels_give_equal_bytes_in_a_file_and_in_a_stream(tmp_path: Path) -> None:
    stream = io.BytesIO()
    write_pyramid(stream, two_halves(700, 300), mpp=0.5, levels=2)
    write_pyramid(tmp_path / "slide.tiff", two_halves(700, 300), mpp=0.5, levels=2)
    assert (tmp_path / "slide.tiff").read_bytes() == stream.getvalue()


@pytest.mark.parametrize(
    ("pixels", "mpp", "levels", "message"),
    [
        (np.zeros((8, 8), np.uint8), 0.5, 1, r"\(row, column, 3\), got uint8 \(8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), 0.5, 1, "got float32"),
        (np.zeros((0, 8, 3), np.uint8), 0.5, 1, r"\(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), 0.0, 1, "mpp: expected um/px, got 0.0"),
        (np.zeros((8, 8, 3), np.uint8), float("nan"), 1, "mpp: expected um/px, got nan"),
        (np.zeros((8, 8, 3), np.uint8), 0.5, 0, "at least 1 level, got 0"),
    ],
)
def test_unusable_pixels_and_settings_are_refused(pixels: np.ndarray, mpp: float, levels: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_pyramid(io.BytesIO(), pixels, mpp, levels)


@pytest.mark.parametrize(("width", "height"), [(1_301, 777), (200, 3_003), (5, 1)])
def test_every_level_is_the_halving_of_the_whole_level_before(width: int, height: int) -> None:
    """Written at quality 100 by bands, read back, and equal to the same picture written as a level 0."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    write_pyramid(stream, pixels, 0.5, 4, quality=100)
    with tifffile.TiffFile(io.BytesIO(stream.getvalue())) as tiff:
        for page in tiff.pages:
            alone = io.BytesIO()
            write_pyramid(alone, pixels, 0.5, 1, quality=100)
            np.testing.assert_array_equal(page.asarray(), tifffile.imread(io.BytesIO(alone.getvalue())))
            pixels = np.asarray(Image.fromarray(pixels).reduce(2))


def test_memory_of_a_pyramid_is_that_of_its_bands() -> None:
    """Of 14,000 px square, 588 MB, that are one row again and again and take no memory themselves."""
    script = (
        "import io, re, numpy as np\n"
        "from milcore.slides.write_pyramid import write_pyramid\n"
        "row = np.full((1, 14_000, 3), 200, np.uint8)\n"
        "write_pyramid(io.BytesIO(), np.broadcast_to(row, (14_000, 14_000, 3)), 0.5, 3)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    peak = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(peak) / 1e3 < 500
