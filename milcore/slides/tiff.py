"""Reader of tiled TIFF (Aperio SVS, OME with SubIFDs, generic pyramids).

tifffile reads the directories; tiles are decoded one by one, several times as fast as asking for regions, since each
tile is decoded once and nothing is composed. Read here: 8-bit RGB in tiles of JPEG, JPEG 2000, WebP, LZW, Deflate,
zstd, PackBits or none. Left to OpenSlide: vendors whose TIFFs need stitching (NDPI, SCN, BIF, Philips, Trestle), planar
samples, YCbCr outside JPEG. Of planes of one size the first is read. An ICC profile is not applied: pixels stay as
scanned, for every reader alike.
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
from milcore.slides.reader import Bounds, Pixels, draw_thumbnail, level_downsample, on_white
from milcore.slides.tile_cache import LruCache, TileIndex

_RGB, _YCBCR = 2, 6
_JPEG, _JPEG2000, _APERIO_JPEG2000, _WEBP = 7, 34712, 33005, 50001
# libjpeg's number of the colour space, by the TIFF's photometric
_JPEG_COLOURS = {_RGB: 2, _YCBCR: 3}
_BYTE_CODECS = frozenset({1, 5, 8, 32773, 32946, 34926, 50000})
_CODECS = _BYTE_CODECS | {_JPEG, _JPEG2000, _APERIO_JPEG2000, _WEBP, 34927}
_STITCHED = ("is_ndpi", "is_scn", "is_bif", "is_philips")
TILE_CACHE_MB = 256.0
_LARGEST_TILE_PX = 4096
_MAX_PAGES = 64
# exceptions of tifffile and the codecs on damaged bytes; none of them is a bug here
_DAMAGE_ERRORS = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, AttributeError, AssertionError,
    MemoryError, struct.error, tifffile.TiffFileError,
)  # fmt: skip


class TiffReader:
    """One tiled TIFF."""

    def __init__(self, path: SlideFile) -> None:
        with _damage_as_slide_error("its TIFF directory is damaged"), _open_tiff(path) as tiff:
            pages = _levels(tiff)
            self._levels = [_Level(page) for page in pages]
            self.mpp = _mpp(pages[0])
            self.backend = f"tiff:{_vendor(pages[0])}"
            self.icc = bytes(pages[0].tags.valueof(34675) or b"") or None
            _check(self._levels[0])
            self.size = (self._levels[0].width, self._levels[0].height)
            self.bounds = Bounds(0, 0, *self.size)
            self.level_downsamples = tuple(
                level_downsample(self.size, (level.width, level.height)) for level in self._levels
            )
        self._file = open_bytes(path)
        tile_mb = max(level.tile_width * level.tile_height * 3 for level in self._levels) / 1e6
        self._tiles: LruCache[TileIndex, Pixels] = LruCache(self._decode, max(2, int(TILE_CACHE_MB / tile_mb)))

    @staticmethod
    def recognises(path: SlideFile) -> bool:
        """True for a tiled TIFF without stitching, in a compression read here."""
        try:
            with _open_tiff(path) as tiff:
                page = _levels(tiff)[0]
                stitched = any(getattr(tiff, name) for name in _STITCHED) or "Trestle" in page.software
                return not stitched and page.compression in _CODECS and _colours_supported(page)
        except (*_DAMAGE_ERRORS, SlideError):
            return False

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Read pixels (height, width, 3) of a level, white outside the slide.

        Raises:
            SlideError: the pixels cannot be read; other regions still can.
        """
        grid = self._levels[level]
        whole_tile = self._whole_tile(x, y, level, width, height)
        if whole_tile is not None:
            return self._decode(whole_tile)  # no other patch needs it; caching it would cost cold memory
        pixels = np.full((height, width, 3), 255, np.uint8)
        right, bottom = min(x + width, grid.width), min(y + height, grid.height)
        for row in range(max(0, y) // grid.tile_height, -(-bottom // grid.tile_height)):
            for column in range(max(0, x) // grid.tile_width, -(-right // grid.tile_width)):
                left, top = column * grid.tile_width, row * grid.tile_height
                x0, y0 = max(x, left), max(y, top)
                x1, y1 = min(right, left + grid.tile_width), min(bottom, top + grid.tile_height)
                tile = self._tiles.get(TileIndex(level, column, row))
                pixels[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return pixels

    def jpeg_tile(self, x: int, y: int, level: int, width: int, height: int) -> bytes | None:
        """Standalone JPEG file of a region that is exactly one tile; else None.

        The compressed pixels are those of the slide.

        Raises:
            SlideError: the tile is damaged.
        """
        grid = self._levels[level]
        tile = self._whole_tile(x, y, level, width, height)
        if tile is None or grid.compression != _JPEG or grid.samples != 3:
            return None
        data = self._tile_bytes(tile)
        header = grid.header(data)
        if (header.width, header.height, header.components) != (width, height, 3):
            return None
        return jpeg_tile.standalone_jpeg(data, header, grid.tables, rgb=grid.photometric == _RGB and not header.jfif)

    def thumbnail(self, max_edge: int) -> Pixels:
        """The whole slide with its longer edge at most ``max_edge`` px."""
        return draw_thumbnail(self, max_edge)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _whole_tile(self, x: int, y: int, level: int, width: int, height: int) -> TileIndex | None:
        """Tile that is exactly this region, wholly inside the slide; else None."""
        grid = self._levels[level]
        exact = (width, height) == (grid.tile_width, grid.tile_height) and not x % width and not y % height
        inside = x >= 0 and y >= 0 and x + width <= grid.width and y + height <= grid.height
        return TileIndex(level, x // width, y // height) if exact and inside else None

    def _tile_bytes(self, tile: TileIndex) -> bytes:
        level = self._levels[tile.level]
        index = level.index(tile)
        size = level.sizes[index]
        if size > level.max_tile_bytes:
            raise SlideError(
                f"tile {tile.column}, {tile.row} of level {tile.level} has {size:,} bytes by the TIFF directory; "
                f"allowed: up to {level.max_tile_bytes:,}"
            )
        data = self._file.read(level.offsets[index], size)
        if len(data) < size:
            raise SlideError(f"tile {tile.column}, {tile.row} of level {tile.level} lies outside the file")
        return data

    def _decode(self, tile: TileIndex) -> Pixels:
        level = self._levels[tile.level]
        data = self._tile_bytes(tile)
        if not data:
            return level.empty_tile(tile)
        with _damage_as_slide_error(f"tile {tile.column}, {tile.row} of level {tile.level} cannot be decoded"):
            return level.decode(data, level.index(tile))


class _Level:
    """One level of a TIFF: grid of tiles, byte ranges and codec."""

    def __init__(self, page: tifffile.TiffPage) -> None:
        self.width, self.height = page.imagewidth, page.imagelength
        self.tile_width, self.tile_height = page.tilewidth, page.tilelength
        self.compression, self.photometric = int(page.compression), int(page.photometric)
        self.samples, self.bits = page.samplesperpixel, page.bitspersample
        # no codec makes a tile larger than its pixels, but for a few headers
        self.max_tile_bytes = 2 * self.tile_width * self.tile_height * self.samples + 65_536
        self.tables: bytes | None = page.jpegtables
        self.offsets, self.sizes = page.dataoffsets, page.databytecounts
        self._header: tuple[bytes, jpeg_tile.Header | None] = b"", None
        self._aperio = page.is_svs
        self._decode = page.decode
        self._columns = -(-self.width // self.tile_width)
        tiles = self._columns * -(-self.height // self.tile_height)
        if not len(self.offsets) == len(self.sizes) >= tiles:
            raise SlideError(f"its TIFF directory is damaged: {len(self.offsets)} offsets for {tiles} tiles")
        if max(self.tile_width, self.tile_height) > _LARGEST_TILE_PX:
            raise SlideError(f"tiles of {self.tile_width} x {self.tile_height} px; allowed: up to {_LARGEST_TILE_PX}")

    def index(self, tile: TileIndex) -> int:
        """Position of the tile in the directory's lists of offsets and byte counts."""
        return tile.row * self._columns + tile.column

    def header(self, data: bytes) -> jpeg_tile.Header:
        """The header of a JPEG tile, parsed once where successive tiles share its bytes."""
        head, header = self._header
        if header is None or not data.startswith(head):
            header = jpeg_tile.read_header(data)
            self._header = data[: header.scan], header
        return header

    def empty_tile(self, tile: TileIndex) -> Pixels:
        """White pixels of a tile without bytes, which was never scanned.

        Raises:
            SlideError: it is an Aperio slide, where an empty tile is a fault of the encoder.
        """
        if self._aperio:
            raise SlideError(f"tile {tile.column}, {tile.row} of level {tile.level} is missing")
        return np.full((self.tile_height, self.tile_width, 3), 255, np.uint8)

    def decode(self, data: bytes, index: int) -> Pixels:
        """RGB pixels (tile height, tile width, 3) of a compressed tile."""
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
        colours = None if header.jfif else _JPEG_COLOURS[self.photometric]
        out = np.empty((header.height, header.width, 3), np.uint8)
        imagecodecs.jpeg8_decode(
            data, tables=self.tables, colorspace=colours, outcolorspace=_JPEG_COLOURS[_RGB], out=out
        )
        padding = (0, self.tile_height - header.height), (0, self.tile_width - header.width), (0, 0)
        return np.pad(out, padding, constant_values=255) if padding[0][1] or padding[1][1] else out


@contextlib.contextmanager
def _open_tiff(file: SlideFile) -> Iterator[tifffile.TiffFile]:
    """Open the TIFF directories with tifffile's log switched off: damage becomes a reason."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        with open_stream(file) as stream, tifffile.TiffFile(stream) as tiff:
            yield tiff
    finally:
        logger.disabled = before


@contextlib.contextmanager
def _damage_as_slide_error(reason: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE_ERRORS as error:
        # not the error's text, which may quote the file
        raise SlideError(f"{reason} ({type(error).__name__})") from None


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
    """The first ``_MAX_PAGES`` pages, each followed by its SubIFDs."""
    for number in range(_MAX_PAGES):
        try:
            page: Any = tiff.pages[number]
        except IndexError:
            return
        yield page
        subpages = page.pages if page.subifds else None
        if subpages is not None:
            yield from (subpages[k] for k in range(min(_MAX_PAGES, len(page.subifds))))


def _is_reduction(page: tifffile.TiffPage, base: tifffile.TiffPage) -> bool:
    """True where a page is the base image, reduced equally in both directions.

    Heights may differ by up to 2 px from the ratio of the widths; both must be stored alike.
    """
    scale = base.imagewidth / page.imagewidth
    same = ("compression", "photometric", "samplesperpixel", "bitspersample", "planarconfig")
    alike = all(getattr(page, name) == getattr(base, name) for name in same)
    return alike and abs(base.imagelength / scale - page.imagelength) <= 2.0


def _colours_supported(page: tifffile.TiffPage) -> bool:
    """True for interleaved RGB and for YCbCr in JPEG.

    Also for an image without colour: this reader opens it to refuse it with the reason.
    """
    if page.samplesperpixel < 3 or page.photometric not in {_RGB, _YCBCR}:
        return True
    planar = page.planarconfig != 1
    return not planar and (page.photometric == _RGB or page.compression == _JPEG)


def _check(level: _Level) -> None:
    """Check that the level is an 8-bit colour image.

    Raises:
        SlideError: it is not.
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
    """um/px from the metadata of Aperio or OME, else from the resolution tags."""
    if page.is_svs:
        mpp = aperio_mpp(page.description)
        return square_mpp(mpp, mpp)
    if page.is_ome:
        return square_mpp(*ome_mpp(page.description))
    unit = int(page.tags.valueof(296) or 2)
    x, y = (tag_mpp(page.tags.valueof(code), unit) for code in (282, 283))
    mpp = square_mpp(x, y)
    return mpp if mpp is not None and math.isfinite(mpp) else None
