"""Tiled TIFF (Aperio SVS, OME with its SubIFDs, generic pyramids) by its own tiles: tifffile reads the directories.

Several times as fast as asking for regions, since each tile is decoded once and nothing is composed. Read here: 8-bit
RGB in tiles of JPEG, JPEG 2000, WebP, LZW, Deflate, zstd, PackBits or none. What is left to OpenSlide: vendors whose
TIFFs need stitching (NDPI, SCN, BIF, Philips, Trestle), planar samples, YCbCr outside JPEG. Of planes of one size the
first is read. An ICC profile is not applied: pixels stay as scanned, for every reader alike.
"""

import contextlib
import logging
import math
import struct
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from milcore.errors import SlideError
from milcore.slides import jpeg_tile
from milcore.slides.file import SlideFile, open_bytes, open_stream
from milcore.slides.mpp import aperio_mpp, ome_mpp, square_mpp, tag_mpp
from milcore.slides.reader import Pixels, draw_thumbnail, level_downsample, on_white
from milcore.slides.tile_cache import LruCache, TileIndex

_RGB, _YCBCR = 2, 6
_JPEG, _JPEG2000, _APERIO_JPEG2000, _WEBP = 7, 34712, 33005, 50001
# libjpeg's own numbers of colour spaces, by the TIFF's photometric
_JPEG_COLOURS = {_RGB: 2, _YCBCR: 3}
_BYTE_CODECS = frozenset({1, 5, 8, 32773, 32946, 34926, 50000})
_CODECS = _BYTE_CODECS | {_JPEG, _JPEG2000, _APERIO_JPEG2000, _WEBP, 34927}
_STITCHED = ("is_ndpi", "is_scn", "is_bif", "is_philips")
TILE_CACHE_MB = 256.0
_LARGEST_TILE_PX = 4096
_MOST_PAGES = 64
# what tifffile and the codecs raise on damaged bytes; none of them is a fault of the program
_DAMAGE = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, AttributeError, AssertionError,
    MemoryError, struct.error, tifffile.TiffFileError,
)  # fmt: skip


class TiffReader:
    """One tiled TIFF."""

    def __init__(self, path: SlideFile) -> None:
        with _damage_told("its TIFF directory is damaged"), _opened(path) as tiff:
            pages = _levels(tiff)
            self._levels = [_Level(page) for page in pages]
            self.mpp = _mpp(pages[0])
            self.backend = f"tiff:{_vendor(pages[0])}"
            self.icc = bytes(pages[0].tags.valueof(34675) or b"") or None
            _check(self._levels[0])
            self.size = (self._levels[0].width, self._levels[0].height)
            self.level_downsamples = tuple(
                level_downsample(self.size, (level.width, level.height)) for level in self._levels
            )
        self._file = open_bytes(path)
        tile_mb = max(level.tile_width * level.tile_height * 3 for level in self._levels) / 1e6
        self._kept: LruCache[TileIndex, Pixels] = LruCache(self._decode, max(2, int(TILE_CACHE_MB / tile_mb)))

    @staticmethod
    def recognises(path: SlideFile) -> bool:
        """Whether it is a tiled TIFF that needs no stitching, in a compression read here."""
        try:
            with _opened(path) as tiff:
                page = _levels(tiff)[0]
                stitched = any(getattr(tiff, name) for name in _STITCHED) or "Trestle" in page.software
                return not stitched and page.compression in _CODECS and _colours_known(page)
        except (*_DAMAGE, SlideError):
            return False

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Pixels (height, width, 3) of a level from its px (x, y); white outside the slide.

        Raises:
            SlideError: they cannot be read; other places still can.
        """
        its = self._levels[level]
        whole = self._whole_tile(x, y, level, width, height)
        if whole is not None:
            return self._decode(whole)  # no other patch will want it; kept, it would cost a walk through cold memory
        pixels = np.full((height, width, 3), 255, np.uint8)
        right, bottom = min(x + width, its.width), min(y + height, its.height)
        for row in range(max(0, y) // its.tile_height, -(-bottom // its.tile_height)):
            for column in range(max(0, x) // its.tile_width, -(-right // its.tile_width)):
                left, top = column * its.tile_width, row * its.tile_height
                x0, y0 = max(x, left), max(y, top)
                x1, y1 = min(right, left + its.tile_width), min(bottom, top + its.tile_height)
                tile = self._kept.get(TileIndex(level, column, row))
                pixels[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return pixels

    def jpeg_tile(self, x: int, y: int, level: int, width: int, height: int) -> bytes | None:
        """The compressed bytes of a place that is exactly one JPEG tile, as an ordinary JPEG file; else None.

        Raises:
            SlideError: the tile is damaged.
        """
        its = self._levels[level]
        place = self._whole_tile(x, y, level, width, height)
        if place is None or its.compression != _JPEG or its.samples != 3:
            return None
        data = self._tile_bytes(place)
        header = its.header(data)
        if (header.width, header.height, header.components) != (width, height, 3):
            return None
        return jpeg_tile.standalone_jpeg(data, header, its.tables, rgb=its.photometric == _RGB and not header.jfif)

    def thumbnail(self, max_edge: int) -> Pixels:
        """The whole slide with its longer edge at most ``max_edge`` px."""
        return draw_thumbnail(self, max_edge)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _whole_tile(self, x: int, y: int, level: int, width: int, height: int) -> TileIndex | None:
        """The tile that is exactly this place, wholly inside the slide."""
        its = self._levels[level]
        exact = (width, height) == (its.tile_width, its.tile_height) and not x % width and not y % height
        inside = x >= 0 and y >= 0 and x + width <= its.width and y + height <= its.height
        return TileIndex(level, x // width, y // height) if exact and inside else None

    def _tile_bytes(self, place: TileIndex) -> bytes:
        level = self._levels[place.level]
        index = level.index(place)
        size = level.sizes[index]
        if size > level.most_bytes:
            raise SlideError(f"tile {place.column}, {place.row} of level {place.level} is told to have {size:,} bytes")
        data = self._file.read(level.offsets[index], size)
        if len(data) < size:
            raise SlideError(f"tile {place.column}, {place.row} of level {place.level} lies outside the file")
        return data

    def _decode(self, place: TileIndex) -> Pixels:
        level = self._levels[place.level]
        data = self._tile_bytes(place)
        if not data:
            return level.missing(place)
        with _damage_told(f"tile {place.column}, {place.row} of level {place.level} cannot be decoded"):
            return level.decode(data, level.index(place))


class _Level:
    """One resolution: the grid of tiles, where each lies in the file, and how it is decoded."""

    def __init__(self, page: tifffile.TiffPage) -> None:
        self.width, self.height = page.imagewidth, page.imagelength
        self.tile_width, self.tile_height = page.tilewidth, page.tilelength
        self.compression, self.photometric = int(page.compression), int(page.photometric)
        self.samples, self.bits = page.samplesperpixel, page.bitspersample
        # no codec makes more of a tile's pixels, save by a few headers
        self.most_bytes = 2 * self.tile_width * self.tile_height * self.samples + 65_536
        self.tables: bytes | None = page.jpegtables
        self.offsets, self.sizes = page.dataoffsets, page.databytecounts
        self._header: tuple[bytes, jpeg_tile.Header | None] = b"", None
        self._aperio = page.is_svs
        self._decode = page.decode
        self._columns = -(-self.width // self.tile_width)
        tiles = self._columns * -(-self.height // self.tile_height)
        if not len(self.offsets) == len(self.sizes) >= tiles:
            raise SlideError(f"its TIFF directory is damaged: {len(self.offsets)} places of {tiles} tiles")
        if max(self.tile_width, self.tile_height) > _LARGEST_TILE_PX:
            raise SlideError(f"tiles of {self.tile_width} x {self.tile_height} px; allowed: up to {_LARGEST_TILE_PX}")

    def index(self, place: TileIndex) -> int:
        """Number of the tile in the file's order."""
        return place.row * self._columns + place.column

    def header(self, data: bytes) -> jpeg_tile.Header:
        """The header of a JPEG tile; most tiles of a level have the same one, byte for byte, which is read once."""
        head, header = self._header
        if header is None or not data.startswith(head):
            header = jpeg_tile.read_header(data)
            self._header = data[: header.scan], header
        return header

    def missing(self, place: TileIndex) -> Pixels:
        """A tile without bytes: a place never scanned, and white; in Aperio's files a fault of the encoder."""
        if self._aperio:
            raise SlideError(f"tile {place.column}, {place.row} of level {place.level} is missing")
        return np.full((self.tile_height, self.tile_width, 3), 255, np.uint8)

    def decode(self, data: bytes, index: int) -> Pixels:
        """RGB pixels (tile height, tile width, 3)."""
        if self.compression in _BYTE_CODECS:
            pixels = np.asarray(self._decode(data, index, _fullsize=True)[0])[0]
        elif self.compression == _JPEG:
            return self._jpeg(data)
        else:
            webp = self.compression not in {_JPEG2000, _APERIO_JPEG2000}
            out = np.empty((self.tile_height, self.tile_width, self.samples), np.uint8)
            pixels = imagecodecs.webp_decode(data, out=out) if webp else imagecodecs.jpeg2k_decode(data, out=out)
        return np.ascontiguousarray(on_white(pixels) if self.samples == 4 else pixels)

    def _jpeg(self, data: bytes) -> Pixels:
        header = self.header(data)
        if header.width > self.tile_width or header.height > self.tile_height or header.components != 3:
            raise SlideError(f"a tile's JPEG is of {header.width} x {header.height} px, {header.components} components")
        its = None if header.jfif else _JPEG_COLOURS[self.photometric]
        out = np.empty((header.height, header.width, 3), np.uint8)
        imagecodecs.jpeg8_decode(data, tables=self.tables, colorspace=its, outcolorspace=_JPEG_COLOURS[_RGB], out=out)
        missing = (0, self.tile_height - header.height), (0, self.tile_width - header.width), (0, 0)
        return np.pad(out, missing, constant_values=255) if missing[0][1] or missing[1][1] else out


@contextlib.contextmanager
def _opened(file: SlideFile) -> Iterator[tifffile.TiffFile]:
    """The file's directories; what tifffile would log of them becomes a reason or nothing."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        with open_stream(file) as stream, tifffile.TiffFile(stream) as tiff:
            yield tiff
    finally:
        logger.disabled = before


@contextlib.contextmanager
def _damage_told(what: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise SlideError(f"{what}: {' '.join(str(error).split())[:200] or type(error).__name__}") from None


def _levels(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The largest tiled page and its reductions, largest first."""
    tiled = [page for page in _pages(tiff) if page.is_tiled and not page.tiledepth > 1 and 0 not in _size(page)]
    if not tiled:
        raise SlideError("no tiled image in the TIFF")
    base = max(tiled, key=lambda page: math.prod(_size(page)))
    levels = [base]
    for page in sorted(tiled, key=lambda page: -page.imagewidth):
        if page.imagewidth < levels[-1].imagewidth and _is_reduction(page, base):
            levels.append(page)
    return levels


def _size(page: tifffile.TiffPage) -> tuple[int, int]:
    return page.imagewidth, page.imagelength


def _pages(tiff: tifffile.TiffFile) -> Iterator[Any]:
    """The first pages, each with the pages below it."""
    for number in range(_MOST_PAGES):
        try:
            page: Any = tiff.pages[number]
        except IndexError:
            return
        yield page
        below = page.pages if page.subifds else None
        if below is not None:
            yield from (below[k] for k in range(min(_MOST_PAGES, len(page.subifds))))


def _is_reduction(page: tifffile.TiffPage, base: tifffile.TiffPage) -> bool:
    """Whether a page is the base shrunk alike in both directions, up to a px lost at each edge, and stored alike."""
    scale = base.imagewidth / page.imagewidth
    same = ("compression", "photometric", "samplesperpixel", "bitspersample", "planarconfig")
    alike = all(getattr(page, name) == getattr(base, name) for name in same)
    return alike and abs(base.imagelength / scale - page.imagelength) <= 2.0


def _colours_known(page: tifffile.TiffPage) -> bool:
    """Whether the colours can be told here; what is no colour image is taken too, to be refused with its reason."""
    if page.samplesperpixel < 3 or page.photometric not in {_RGB, _YCBCR}:
        return True
    planar = page.planarconfig != 1
    return not planar and (page.photometric == _RGB or page.compression == _JPEG)


def _check(level: _Level) -> None:
    """Refuse what is no 8-bit colour image.

    Raises:
        SlideError: why.
    """
    if level.samples < 3:
        raise SlideError(f"{level.samples} sample a pixel: greyscale or fluorescence, not a stained colour slide")
    if level.bits != 8:
        raise SlideError(f"{level.bits} bits a sample; allowed: 8; convert the slide with its own software")
    if level.samples > 4 or level.photometric not in {_RGB, _YCBCR}:
        raise SlideError(f"{level.samples} samples a pixel, photometric {level.photometric}; allowed: RGB or YCbCr")
    if level.compression == _JPEG and level.samples == 4:
        raise SlideError("JPEG tiles of 4 components; allowed: RGB or YCbCr")


def _vendor(page: tifffile.TiffPage) -> str:
    return "aperio" if page.is_svs else "ome" if page.is_ome else "generic"


def _mpp(page: tifffile.TiffPage) -> float | None:
    """um/px from the vendor's own words where it has them, else from the resolution tags."""
    if page.is_svs:
        told = aperio_mpp(page.description)
        return square_mpp(told, told)
    if page.is_ome:
        return square_mpp(*ome_mpp(page.description))
    unit = int(page.tags.valueof(296) or 2)
    x, y = (tag_mpp(page.tags.valueof(code), unit) for code in (282, 283))
    mpp = square_mpp(x, y)
    return mpp if mpp is not None and math.isfinite(mpp) else None
