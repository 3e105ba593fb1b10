"""Tiles as writers in the field leave them: padded tables, absent tiles, fewer samples, premultiplied alpha.

Rows of the tables below: the file as it is made here, what is right, and why. The same kinds of file lie beside the
project (``shared/cases``); where they do, they are read too.
"""

import ctypes
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from milcore.cohort.manifest import Slide
from milcore.config import IngestConfig
from milcore.errors import SlideError
from milcore.ingestion.slide import ingest_slide
from milcore.ingestion.slide_result import SlideOutcome
from milcore.slides import READERS, open_slide
from milcore.slides.tiff import TiffReader
from milcore.store.store import PatchStore

EDGE = 128
CORNERS = [(x, y) for y in range(0, 512, EDGE) for x in range(0, 512, EDGE)]
_WORDS = ctypes.POINTER(ctypes.c_uint32)
_JPEG: dict[str, Any] = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (1, 1)}
ABSENT = {0, 5, 15}
APERIO = "Aperio Image Library v11.2.1\n512x512 (128x128) JPEG|AppMag = 20|MPP = 0.5"


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Stained from edge to edge, smooth, 512 x 512: 4 x 4 tiles."""
    y, x = np.mgrid[:512, :512]
    return np.stack([190 + 20 * np.sin(x / 40), 90 + y * 0.1, 150 + 20 * np.cos(y / 50)], -1).astype(np.uint8)


def _tile_at(pixels: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    x, y = corner
    return np.ascontiguousarray(pixels[y : y + EDGE, x : x + EDGE])


def _write(path: Path, tiles: Iterator[bytes], samples: int = 3, **how: Any) -> Path:
    tifffile.imwrite(
        path, tiles, shape=(512, 512, samples), dtype=np.uint8, tile=(EDGE, EDGE), resolution=(2e4, 2e4),
        resolutionunit=3, metadata=None, **{"photometric": "rgb", **how},
    )  # fmt: skip
    return path


def _jpegs(pixels: np.ndarray, subsampling: str = "444") -> list[bytes]:
    how = {"outcolorspace": "YCBCR", "subsampling": subsampling}
    corners = [corner for corner in CORNERS if max(corner) < len(pixels)]
    return [bytes(imagecodecs.jpeg8_encode(_tile_at(pixels, corner), 90, **how)) for corner in corners]


def _in_two_parts(jpeg: bytes) -> tuple[bytes, bytes]:
    """Tables and the abbreviated tile of a JPEG, as libtiff writes them: DQT and DHT go to the tables."""
    tables, rest, at = b"", b"", 2
    while jpeg[at + 1] != 0xDA:
        stop = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if jpeg[at + 1] in {0xDB, 0xC4}:
            tables += jpeg[at:stop]
        elif jpeg[at + 1] != 0xE0:
            rest += jpeg[at:stop]
        at = stop
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + jpeg[at:]


def _with_tables(path: Path, pixels: np.ndarray, change: Callable[[bytes], bytes]) -> Path:
    parts = [_in_two_parts(jpeg) for jpeg in _jpegs(pixels, "420")]
    tables = change(parts[0][0])
    tag = (347, 7, len(tables), tables, True)
    return _write(path, iter([tile for _, tile in parts]), **_JPEG | {"subsampling": (2, 2)}, extratags=[tag])


def _sparse(path: Path, pixels: np.ndarray, **how: Any) -> Path:
    tiles = [b"" if k in ABSENT else jpeg for k, jpeg in enumerate(_jpegs(pixels))]
    return _write(path, iter(tiles), **_JPEG, **how)


def _ingest(path: Path, folder: Path, **settings: Any) -> SlideOutcome:
    slide = Slide("a", str(path), 0, "a", "", None, None, None)
    config = IngestConfig(**{"patch_size": EDGE, "min_tissue": 0.0, **settings})
    return ingest_slide(slide, PatchStore(str(folder / "store")), config)


def _openslide(path: Path, corner: Sequence[int], level: int = 0) -> np.ndarray:
    with openslide.OpenSlide(str(path)) as slide:
        edge = int(slide.properties["openslide.level[0].tile-width"])
        words = np.zeros((edge, edge), np.uint32)
        openslide.lowlevel._read_region(slide._osr, words.ctypes.data_as(_WORDS), *corner, level, edge, edge)
    premultiplied = words.view(np.uint8).reshape(edge, edge, 4)[..., [2, 1, 0, 3]].astype(int)
    return np.minimum(premultiplied[..., :3] + 255 - premultiplied[..., 3:], 255)


PADDINGS: dict[str, Callable[[bytes], bytes]] = {
    "as they should be": lambda tables: tables,
    "zeros behind EOI": lambda tables: tables + bytes(5),
    "fill bytes before EOI": lambda tables: tables[:-2] + b"\xff\xff" + tables[-2:],
    "no EOI": lambda tables: tables[:-2],
    "a JFIF segment": lambda tables: tables[:2] + b"\xff\xe0\x00\x10JFIF\x00\x01\x01" + bytes(7) + tables[2:],
}


@pytest.mark.parametrize("padding", PADDINGS)
def test_tiles_of_shared_tables_are_copied_whole(tmp_path: Path, pixels: np.ndarray, padding: str) -> None:
    """Bytes between the tables and the tile would end every decoder, first in ``encode``."""
    reference = _with_tables(tmp_path / "whole.tiff", pixels, lambda tables: tables)
    path = _with_tables(tmp_path / "a.tiff", pixels, PADDINGS[padding])
    assert _ingest(path, tmp_path, codec="passthrough").reason is None
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    assert (slide.record.codec, len(slide)) == ("passthrough", 16)
    for chunk, patch, corner in zip(slide.chunks(0, 16), slide.patches(0, 16), slide.coords.tolist(), strict=True):
        expected = _openslide(reference, corner)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(chunk.tobytes()))), expected)
        np.testing.assert_array_equal(patch, expected)


@pytest.mark.parametrize("description", ["", APERIO], ids=["generic", "aperio"])
@pytest.mark.parametrize("codec", ["jpeg", "passthrough"])
def test_absent_tiles_are_background(tmp_path: Path, pixels: np.ndarray, description: str, codec: str) -> None:
    """A scanner left them out. The first of the plan is absent, which decides nothing about the others."""
    path = _sparse(tmp_path / "a.svs", pixels, description=description)
    assert _ingest(path, tmp_path, codec=codec) == ("a", "ok", None, 16, False)
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    assert slide.record.codec == codec
    white = [patch.min() >= 254 for patch in slide.patches(0, 16)]
    assert white == [number in ABSENT for number in range(16)]
    assert _ingest(path, tmp_path, codec=codec, min_tissue=0.5).patches > 8
    planned = {tuple(corner) for corner in PatchStore(str(tmp_path / "store")).slide("a").coords.tolist()}
    assert not planned & {CORNERS[number] for number in ABSENT}


@pytest.mark.parametrize("absent", [{0, 1, 2, 3}, {2}])
def test_an_absent_tile_of_a_coarse_level_shows_the_finer_one(
    tmp_path: Path, pixels: np.ndarray, absent: set[int]
) -> None:
    """Aperio leaves tiles out of a coarse level though it has scanned them; OpenSlide scales the finer ones down."""
    half = pixels.reshape(256, 2, 256, 2, 3).mean((1, 3)).astype(np.uint8)
    fine = [b"" if k == 0 else jpeg for k, jpeg in enumerate(_jpegs(pixels))]
    coarse = [b"" if k in absent else jpeg for k, jpeg in enumerate(_jpegs(half))]
    how: dict[str, Any] = {"dtype": np.uint8, "tile": (EDGE, EDGE), "metadata": None, **_JPEG}
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        tiff.write(iter(fine), shape=(512, 512, 3), description=APERIO, **how)
        tiff.write(iter(coarse), shape=(256, 256, 3), description="Aperio level", **how)
    with open_slide(tmp_path / "a.svs") as slide:
        assert slide.level_downsamples == (1.0, 2.0)
        level = slide.read(0, 0, 1, 256, 256).astype(int)
    if 0 in absent:
        assert (level[:60, :60] == 255).all()  # nor has the finer level anything here
    assert np.abs(level[130:, 2:124] - half[130:, 2:124]).max() <= 6
    assert np.abs(level[130:254, 2:124] - _openslide(tmp_path / "a.svs", (0, 256), 1)[2:126, 2:124]).max() <= 12


@pytest.mark.parametrize("codec", ["webp", "jpeg2000"])
def test_tiles_of_fewer_samples_than_the_directory_says_are_opaque(
    tmp_path: Path, pixels: np.ndarray, codec: str
) -> None:
    """Their encoder left out an alpha that is 255 everywhere, which is its right; RGB remains."""
    encode = imagecodecs.webp_encode if codec == "webp" else imagecodecs.jpeg2k_encode
    lossless = {"lossless": True} if codec == "webp" else {"level": 0}
    tiles = [bytes(encode(_tile_at(pixels, corner), **lossless)) for corner in CORNERS]
    path = _write(tmp_path / "a.tiff", iter(tiles), 4, compression=codec, extrasamples=["unassalpha"])
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(100, 90, 0, 150, 150), pixels[90:240, 100:250])


@pytest.mark.parametrize(
    ("kind", "colour", "expected"), [("assocalpha", 50, 177), ("assocalpha", 200, 255), ("unassalpha", 100, 177)]
)
def test_alpha_is_composited_as_the_directory_says(tmp_path: Path, kind: str, colour: int, expected: int) -> None:
    """Half of 100 on white: 50 + 127 where it is premultiplied, 100 * 128 / 255 + 127 = 177.2 where not."""
    tile = np.full((EDGE, EDGE, 4), (colour, colour, colour, 128), np.uint8)
    tiles = [bytes(imagecodecs.deflate_encode(tile.tobytes())) for _ in CORNERS]
    path = _write(tmp_path / "a.tiff", iter(tiles), 4, compression="deflate", extrasamples=[kind])
    with open_slide(path) as slide:
        assert (slide.read(0, 0, 0, 512, 512) == expected).all()


class _TilesOfElsewhere(TiffReader):
    """A reader whose compressed tiles are those of the row above."""

    def jpeg_tile(self, x: int, y: int, level: int, width: int, height: int) -> bytes | None:
        return super().jpeg_tile(x, max(0, y - height), level, width, height)


def test_a_copied_tile_that_shows_other_pixels_quarantines_the_slide(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the store would be complete, and wrong."""
    path = _write(tmp_path / "a.tiff", iter(_jpegs(pixels)), **_JPEG)
    monkeypatch.setitem(READERS, "tiff", _TilesOfElsewhere)
    outcome = _ingest(path, tmp_path, codec="passthrough")
    assert outcome.reason == (
        "the JPEG tile at 0, 128 px, copied as it is, decodes to other pixels than the slide's; take --codec jpeg"
    )
    record = PatchStore(str(tmp_path / "store")).record("a")
    assert record is not None
    assert record.status == "quarantined"
    assert _ingest(path, tmp_path, codec="jpeg").reason is None


def test_a_copied_tile_that_no_decoder_reads_is_unreadable(tmp_path: Path, pixels: np.ndarray) -> None:
    """Its markers are whole, its Huffman table is not; in a sample it is noticed as with every other codec."""
    jpegs = _jpegs(pixels)
    at = jpegs[2].index(b"\xff\xc4") + 5
    jpegs[2] = jpegs[2][:at] + bytes([255] * 16) + jpegs[2][at + 16 :]
    path = _write(tmp_path / "a.tiff", iter(jpegs), **_JPEG)
    assert _ingest(path, tmp_path, codec="passthrough").reason == "1 of 16 tiles unreadable (--max-unreadable allows 0)"
    assert _ingest(path, tmp_path, codec="passthrough", max_unreadable=1).patches == 15


def test_a_thumbnail_in_tiles_is_no_slide(tmp_path: Path, pixels: np.ndarray) -> None:
    """The image itself is stored in strips: its tiled thumbnail would be read as if it were the slide."""
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        tiff.write(pixels[::4, ::4], tile=(EDGE, EDGE), photometric="rgb")
        tiff.write(pixels, photometric="rgb", rowsperstrip=16)
    reason = r"its largest image, 512 x 512 px, is stored in strips; convert it to a tiled pyramidal TIFF"
    with pytest.raises(SlideError, match=reason), open_slide(tmp_path / "a.tiff"):
        pass


class Case(NamedTuple):
    """A file beside the project, the codec that passthrough gives, and why what is read is right."""

    name: str
    codec: str
    reason: str


CASES = (
    Case("02/webp_3in4.tif", "jpeg", "WebP tiles without alpha are opaque: what Pillow decodes"),
    Case("03/jpeg_tables_padded.tif", "passthrough", "bytes behind the tables' EOI are no data: what OpenSlide reads"),
    Case("04/sparse_jpeg.tif", "passthrough", "absent tiles are background: what OpenSlide reads"),
    Case("14/rgba_premult128.tif", "jpeg", "colour + (1 - alpha) x white: what OpenSlide reads, alpha multiplied"),
    Case("18/sparse_aperio.svs", "passthrough", "zero-length tiles are background: what OpenSlide reads"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_cases_beside_the_project(shared_cases: Path, tmp_path: Path, case: Case) -> None:
    path = shared_cases / case.name
    slide, store = Slide("a", str(path), 0, "a", "", None, None, None), PatchStore(str(tmp_path))
    for codec, stored in (("passthrough", case.codec), ("zstd", "zstd")):
        outcome = ingest_slide(slide, store, IngestConfig(codec=codec))  # type: ignore[arg-type]
        assert (outcome.reason, store.slide("a").record.codec) == (None, stored)
        assert outcome.patches >= 18
        if stored != "jpeg":
            _compare(path, store)


def _compare(path: Path, store: PatchStore) -> None:
    """Compare stored patches with what another program reads."""
    group = store.slide("a")
    for patch, corner in zip(group.patches(0, len(group)), group.coords.tolist(), strict=True):
        np.testing.assert_array_equal(patch, _webp(path, corner) if "webp" in path.name else _openslide(path, corner))


def _webp(path: Path, corner: list[int]) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        page = tiff.pages[0]
        index = corner[1] // 256 * (page.imagewidth // 256) + corner[0] // 256
        file.seek(page.dataoffsets[index])
        return np.asarray(Image.open(io.BytesIO(file.read(page.databytecounts[index]))).convert("RGB"))
