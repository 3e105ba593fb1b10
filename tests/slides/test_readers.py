"""The contract of every backend in the table, and the reasons of files that cannot be opened."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from milcore.config import ReaderName
from milcore.errors import SlideError
from milcore.slides import READERS, SlideReader, open_slide, read_area
from milcore.slides.image import FlatImageReader
from milcore.slides.openslide import bounds_of, premultiplied_on_white
from milcore.slides.reader import finer_level
from milcore.slides.write_pyramid import write_pyramid
from tests.leica import write_scn


def _gradient(width: int, height: int) -> np.ndarray:
    """Smooth, so that JPEG keeps it within 4: red follows x, green follows y."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, np.full_like(x, 128, float)], -1).astype(np.uint8)


def _make(backend: str, folder: Path) -> Path:
    pixels = _gradient(700, 500)
    if backend == "flat":
        Image.fromarray(pixels).save(folder / "a.png")
        return folder / "a.png"
    write_pyramid(folder / "a.tiff", pixels, 0.25, 3, quality=95)
    return folder / "a.tiff"


@pytest.fixture(params=sorted(READERS))
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SlideReader]:
    with open_slide(_make(request.param, tmp_path), request.param) as opened:
        assert isinstance(opened, READERS[request.param])
        assert opened.backend.startswith(request.param)
        yield opened


def test_a_reader_returns_the_pixels_of_a_place(reader: SlideReader) -> None:
    assert reader.size == (700, 500)
    patch = reader.read(300, 200, 0, 64, 32)
    assert (patch.shape, patch.dtype) == ((32, 64, 3), np.uint8)
    assert np.abs(patch.astype(int) - _gradient(700, 500)[200:232, 300:364]).max() <= 4


@pytest.mark.parametrize(("x", "y"), [(680, 480), (-20, -30), (690, -30)])
def test_outside_the_slide_is_white(reader: SlideReader, x: int, y: int) -> None:
    padded = np.full((600, 800, 3), 255, np.uint8)
    padded[50:550, 50:750] = _gradient(700, 500)
    expected = padded[50 + y : 90 + y, 50 + x : 90 + x].astype(int)
    assert np.abs(reader.read(x, y, 0, 40, 40) - expected).max() <= 4


def test_wholly_outside_is_white(reader: SlideReader) -> None:
    assert reader.read(2000, 2000, 0, 8, 8).min() == 255


def test_bounds_are_the_whole_slide_where_the_file_names_none(reader: SlideReader) -> None:
    assert reader.bounds == (0, 0, 700, 500)


def test_a_slide_that_was_scanned_in_part_has_bounds(tmp_path: Path) -> None:
    write_scn(tmp_path / "a.scn", np.full((384, 512, 3), (200, 120, 170), np.uint8), (256, 128), (1024, 768))
    with open_slide(tmp_path / "a.scn") as slide:
        assert (slide.backend, slide.size) == ("openslide:leica", (1024, 768))
        assert slide.bounds == (256, 128, 512, 384)
        # coordinates stay the slide's own
        assert slide.read(250, 200, 0, 12, 1)[0, 5].min() == 255
        assert slide.read(250, 200, 0, 12, 1)[0, 6].tolist() == pytest.approx((200, 120, 170), abs=2)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"x": "1", "y": "2", "width": "3"},
        {"x": "-1", "y": "2", "width": "3", "height": "4"},
        {"x": "1", "y": "2", "width": "0", "height": "4"},
        {"x": "90", "y": "2", "width": "11", "height": "4"},
        {"x": "1.5", "y": "2", "width": "3", "height": "4"},
    ],
)
def test_bounds_that_are_none_are_the_whole_slide(values: dict[str, str]) -> None:
    properties = {f"openslide.bounds-{name}": value for name, value in values.items()}
    assert bounds_of(properties, (100, 50)) == (0, 0, 100, 50)


def test_a_thumbnail_shows_the_whole(reader: SlideReader) -> None:
    thumbnail = reader.thumbnail(70)
    assert thumbnail.shape == (50, 70, 3)
    slow = _gradient(700, 500).reshape(50, 10, 70, 10, 3).mean(axis=(1, 3))
    assert np.abs(thumbnail - slow).max() <= 4


def test_a_thumbnail_is_never_larger_than_the_slide(reader: SlideReader) -> None:
    assert reader.thumbnail(9000).shape == (500, 700, 3)


def test_an_area_is_read_at_any_scale(reader: SlideReader) -> None:
    """90 level-0 px into 30: a scale of 3, from level 1 (2) where there is one."""
    patch = read_area(reader, (120, 60), (90.0, 90.0), (30, 30))
    slow = _gradient(700, 500)[60:150, 120:210].reshape(30, 3, 30, 3, 3).mean(axis=(1, 3))
    assert np.abs(patch - slow).max() <= 4


def test_a_pyramid_has_scale_and_levels_and_a_plain_image_neither(tmp_path: Path) -> None:
    with open_slide(_make("openslide", tmp_path), "openslide") as slide, open_slide(_make("flat", tmp_path)) as image:
        assert slide.mpp == pytest.approx(0.25, rel=1e-3)
        assert slide.level_downsamples == pytest.approx((1.0, 2.0, 4.0), rel=1e-2)
        assert (image.mpp, image.level_downsamples) == (None, (1.0,))


def test_openslide_s_premultiplied_pixels_are_composited_on_white() -> None:
    """Its colours come multiplied by alpha: half opaque black is grey, nothing is white."""
    words = np.array([[[9, 8, 7, 255], [0, 0, 0, 128], [0, 0, 0, 0], [100, 50, 0, 128]]], np.uint8)
    np.testing.assert_array_equal(
        premultiplied_on_white(words)[..., :3], [[[9, 8, 7], [127, 127, 127], [255, 255, 255], [227, 177, 127]]]
    )


@pytest.mark.parametrize(
    ("scale", "level"), [(0.5, 0), (1.0, 0), (1.99, 1), (1.98, 0), (2.5, 1), (3.985, 2), (4.0, 2), (99.0, 2)]
)
def test_the_nearest_finer_level_is_read(scale: float, level: int) -> None:
    """Downsamples up to 0.5 % above the scale count as equal: 2 <= 1.99 * 1.005 = 1.99995 fails at 1.98."""
    assert finer_level((1.0, 1.9999, 4.001), scale) == level


def test_thumbnails_of_large_slides_are_drawn_block_by_block(tmp_path: Path) -> None:
    """No read of a 5000 x 3000 plain image is larger than a block of 2048 px."""
    Image.new("RGB", (5000, 3000), (10, 200, 30)).save(tmp_path / "a.png", compress_level=1)
    with contextlib.closing(_RecordingReader(tmp_path / "a.png")) as reader:
        thumbnail = reader.thumbnail(500)
        assert thumbnail.shape == (300, 500, 3)
        assert (thumbnail == (10, 200, 30)).all()
        assert max(max(size) for size in reader.reads) <= 2049


class _RecordingReader(FlatImageReader):
    """A reader that notes the sizes it was asked for, and cannot read inside ``broken`` (x0, y0, x1, y1)."""

    broken: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: list[tuple[int, int]] = []

    def read(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        self.reads.append((width, height))
        x0, y0, x1, y1 = self.broken
        if x < x1 and x + width > x0 and y < y1 and y + height > y0:
            raise SlideError("unreadable")
        return super().read(x, y, level, width, height)


def test_an_unreadable_place_of_a_thumbnail_takes_its_surroundings_colour(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1500), (200, 100, 150)).save(tmp_path / "a.png")
    with contextlib.closing(_RecordingReader(tmp_path / "a.png")) as reader:
        reader.broken = (300, 300, 500, 400)
        assert (reader.thumbnail(200) == (200, 100, 150)).all()


def test_a_slide_without_a_readable_block_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (600, 600)).save(tmp_path / "a.png")
    with contextlib.closing(_RecordingReader(tmp_path / "a.png")) as reader:
        reader.broken = (0, 0, 600, 600)
        with pytest.raises(SlideError, match="no part of the slide"):
            reader.thumbnail(200)


@pytest.mark.parametrize("backend", ["openslide", "tiff"])
def test_reading_goes_on_after_an_unreadable_tile(shared_data: Path, backend: ReaderName) -> None:
    with (
        open_slide(shared_data / "slides/corrupt_tiles.svs", backend) as damaged,
        open_slide(shared_data / "slides/CMU-1-Small-Region.svs", backend) as whole,
    ):
        failed, equal = 0, 0
        for y in range(0, 2880, 240):
            for x in range(0, 2160, 240):
                try:
                    equal += np.array_equal(damaged.read(x, y, 0, 240, 240), whole.read(x, y, 0, 240, 240))
                except SlideError:
                    failed += 1
        assert failed > 0
        assert failed + equal == 9 * 12


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty file \(0 bytes\)"),
        (b"hello, this is no slide", "not a slide in a known format: of tiff, openslide, flat none recognises it$"),
        (
            struct.pack("<2sHI", b"II", 42, 9999) + bytes(50),
            "truncated: the TIFF directory lies at byte 9,999 of .* 58",
        ),
        (struct.pack(">2sHHHQ", b"MM", 43, 8, 0, 7777) + bytes(50), "truncated: .* byte 7,777 of a file of 66 bytes"),
    ],
)
def test_files_that_are_no_slides_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.svs").write_bytes(content)
    with pytest.raises(SlideError, match=reason), open_slide(tmp_path / "a.svs"):
        pass


def test_a_plain_image_too_large_to_decode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (300, 100)).save(tmp_path / "a.png")
    for limit in (20_000, 1_000):  # Pillow warns above its limit and raises above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(SlideError, match=f"more than {limit:,} px.*pyramidal TIFF"), open_slide(tmp_path / "a.png"):
            pass


def test_a_truncated_plain_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SlideError, match="cannot be decoded"), open_slide(tmp_path / "a.png"):
        pass


def test_images_of_16_bits_or_without_colour_are_refused(tmp_path: Path) -> None:
    """Pillow opens 16-bit RGB as if it were 8-bit RGB, and cuts off what is below."""
    deep = np.full((40, 50, 3), 40_000, np.uint16)
    (tmp_path / "rgb.png").write_bytes(imagecodecs.png_encode(deep))
    (tmp_path / "rgba.png").write_bytes(imagecodecs.png_encode(np.dstack([deep, deep[..., :1]])))
    for name, how in (("strips", {}), ("lzw", {"compression": "lzw"}), ("planar", {"planarconfig": "separate"})):
        values = np.moveaxis(deep, -1, 0) if name == "planar" else deep
        tifffile.imwrite(tmp_path / f"{name}.tiff", values, photometric="rgb", **how)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(SlideError, match=r"16 bits a sample; allowed: 8; convert the image"), open_slide(path):
            pass
    Image.fromarray(deep[..., 0]).save(tmp_path / "deep.png")
    with pytest.raises(SlideError, match="image of mode I;16"), open_slide(tmp_path / "deep.png"):
        pass
    Image.new("L", (8, 8)).save(tmp_path / "grey.png")
    with pytest.raises(SlideError, match="image of mode L: greyscale"), open_slide(tmp_path / "grey.png"):
        pass


def test_transparency_of_a_plain_image_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    with open_slide(tmp_path / "clear.png") as image:
        assert image.read(0, 0, 0, 8, 8).min() == 255


@pytest.mark.parametrize("order", [(20, 200, 200, 60), (200, 20, 200, 60)])
def test_the_largest_page_of_a_plain_tiff_is_read(tmp_path: Path, order: tuple[int, ...]) -> None:
    """A thumbnail may lie before or behind it; of two equal pages the first is read."""
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        for number, edge in enumerate(order):
            tiff.write(np.full((edge, 2 * edge, 3), 10 * number, np.uint8), photometric="rgb")
    with open_slide(tmp_path / "a.tiff") as image:
        assert (image.backend, image.size) == ("flat:tiff", (400, 200))
        assert (image.read(0, 0, 0, 400, 200) == 10 * order.index(200)).all()


def test_a_page_too_large_to_decode_behind_a_small_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        for edge in (20, 200):
            tiff.write(np.zeros((edge, edge, 3), np.uint8), photometric="rgb")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    with pytest.raises(SlideError, match=r"more than 30,000 px.*pyramidal TIFF"), open_slide(tmp_path / "a.tiff"):
        pass


def test_a_plain_image_of_fewer_bytes_than_its_px_need_is_refused(tmp_path: Path) -> None:
    """A JPEG of a few hundred bytes that declares 81 megapixels would be decoded, grey, in 2 GB of memory."""
    Image.new("RGB", (64, 64), (200, 100, 150)).save(tmp_path / "a.jpg", quality=1)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 9000, 9000)
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "cut.jpg").write_bytes(data[:200])
    reason = rf"declares 9,000 x 9,000 px in {len(data)} bytes; allowed: 158,204 bytes or more"
    with pytest.raises(SlideError, match=reason), open_slide(tmp_path / "a.jpg"):
        pass
    with pytest.raises(SlideError, match="image cannot be opened"), open_slide(tmp_path / "cut.jpg"):
        pass


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_an_image_of_one_colour_is_read_however_little_it_takes(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (4000, 4000), "white").save(tmp_path / name, quality=1, progressive=True, optimize=True)
    with open_slide(tmp_path / name) as image:
        assert image.size == (4000, 4000)
