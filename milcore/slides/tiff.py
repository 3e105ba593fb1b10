"""Reader of tiled TIFF (Aperio SVS, OME with SubIFDs, generic pyramids).

tifffile reads the directories; tiles are decoded one by one, several times as fast as asking for regions, since each
tile is decoded once and nothing is composed. Read here: 8-bit RGB in tiles of JPEG, JPEG 2000, WebP, LZW, Deflate,
zstd, PackBits or none, interleaved or in planes, which may be pages of one sample each in an OME-TIFF. Left to
OpenSlide: vendors whose TIFFs need stitching (NDPI, SCN, BIF, Philips, Trestle), YCbCr outside JPEG. The largest image
is read, of equal ones the first, and the others are counted. An ICC profile is not applied: pixels stay as scanned, for
every reader alike.
"""

import contextlib
import logging
import math
import struct
from collections.abc import Iterator

import numpy as np
import tifffile

from milcore.errors import SlideError
from milcore.slides import jpeg_tile
from milcore.slides.dicom import is_dicom
from milcore.slides.file import SlideFile, open_bytes, open_stream
from milcore.slides.reader import Bounds, Pixels, draw_thumbnail, level_downsample
from milcore.slides.resample import area_resize
from milcore.slides.tiff_level import CODECS, JPEG, RGB, YCBCR, Level
from milcore.slides.tiff_metadata import ome_image_of, ome_images, scale_of, vendor_of
from milcore.slides.tiff_pages import check_largest, find_levels, numbered_pages, unread_images
from milcore.slides.tile_cache import LruCache, TileIndex

_STITCHED = ("is_ndpi", "is_scn", "is_bif", "is_philips")
TILE_CACHE_MB = 256.0
_BLOCK_PX = 2048
# exceptions of tifffile, Pillow and the codecs on damaged bytes; none of them is a bug here
_DAMAGE_ERRORS = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, AttributeError, AssertionError,
    MemoryError, EOFError, SyntaxError, struct.error, tifffile.TiffFileError,
)  # fmt: skip


class TiffReader:
    """One tiled TIFF.

    A tile without bytes was never scanned; it is white, or what a finer level has of it.
    """

    def __init__(self, path: SlideFile) -> None:
        with damage_as_slide_error("its TIFF directory is damaged"), open_tiff(path) as tiff:
            images = ome_images(tiff)
            numbered = list(numbered_pages(tiff))
            levels = find_levels(numbered, images)
            base, image = levels[0][0], ome_image_of(levels[0][0].number, images)
            check_largest(numbered, base.page)
            self._levels = [Level(*(each.page for each in level)) for level in levels]
            self.mpp, self.magnification = scale_of(base.page, image)
            self.backend = f"tiff:{vendor_of(base.page, image)}"
            self.icc = bytes(base.page.tags.valueof(34675) or b"") or None
            self.unread_images = unread_images(numbered, levels, images)
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
        with open_stream(path) as stream:
            if is_dicom(stream):  # it may be both, and have its other levels in other files
                return False
        try:
            with open_tiff(path) as tiff:
                page = find_levels(list(numbered_pages(tiff)), ome_images(tiff))[0][0].page
                stitched = any(getattr(tiff, name) for name in _STITCHED) or "Trestle" in page.software
                return not stitched and page.compression in CODECS and _colours_supported(page)
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

        The compressed pixels are those of the slide; a tile that was never scanned has no bytes.

        Raises:
            SlideError: the tile is damaged.
        """
        grid = self._levels[level]
        tile = self._whole_tile(x, y, level, width, height)
        if tile is None or grid.compression != JPEG or grid.samples != 3 or grid.planes != 1:
            return None
        (data,) = self._segments(tile)
        if not data:
            return b""
        header = grid.header(data)
        if (header.width, header.height, header.components) != (width, height, 3):
            return None
        return jpeg_tile.standalone_jpeg(data, header, grid.tables, rgb=grid.photometric == RGB and not header.jfif)

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

    def _segments(self, tile: TileIndex) -> list[bytes]:
        """Bytes of a tile, one after another where it lies in planes."""
        return [self._segment(tile, index) for index in self._levels[tile.level].segments(tile)]

    def _segment(self, tile: TileIndex, index: int) -> bytes:
        level = self._levels[tile.level]
        size = int(level.sizes[index])
        if size > level.max_tile_bytes:
            raise SlideError(
                f"tile {tile.column}, {tile.row} of level {tile.level} has {size:,} bytes by the TIFF directory; "
                f"allowed: up to {level.max_tile_bytes:,}"
            )
        data = self._file.read(level.offsets[index], size)
        if len(data) < size:
            raise SlideError(f"tile {tile.column}, {tile.row} of level {tile.level} lies outside the file")
        return data

    def _absent_tile(self, tile: TileIndex) -> Pixels:
        """White, or the pixels of the next finer level that has any there."""
        level = self._levels[tile.level]
        left, top = tile.column * level.tile_width, tile.row * level.tile_height
        width, height = min(level.tile_width, level.width - left), min(level.tile_height, level.height - top)
        pixels = np.full((level.tile_height, level.tile_width, 3), 255, np.uint8)
        for number in range(tile.level - 1, -1, -1):
            finer = self._levels[number]
            scale = finer.width / level.width, finer.height / level.height
            if finer.has_bytes(left * scale[0], top * scale[1], (left + width) * scale[0], (top + height) * scale[1]):
                step = max(1, int(_BLOCK_PX / max(scale)))
                for y in range(0, height, step):
                    for x in range(0, width, step):
                        size = min(step, width - x), min(step, height - y)
                        pixels[y : y + size[1], x : x + size[0]] = self._shrink(
                            number, scale, (left + x, top + y), size
                        )
                break
        return pixels

    def _shrink(self, level: int, scale: tuple[float, float], corner: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Pixels of a level, area-resampled to a coarser one.

        Args:
            level: to read.
            scale: px of it per px of the coarser one, in x and y.
            corner: (x, y) in px of the coarser one.
            size: (width, height) in px of the coarser one.
        """
        left, top = corner[0] * scale[0], corner[1] * scale[1]
        right, bottom = (corner[0] + size[0]) * scale[0], (corner[1] + size[1]) * scale[1]
        x, y = int(left), int(top)
        pixels = self.read(x, y, level, math.ceil(right) - x, math.ceil(bottom) - y)
        return area_resize(pixels, (left - x, top - y, right - x, bottom - y), size)

    def _decode(self, tile: TileIndex) -> Pixels:
        level = self._levels[tile.level]
        segments = self._segments(tile)
        if not any(segments):
            return self._absent_tile(tile)
        with damage_as_slide_error(f"tile {tile.column}, {tile.row} of level {tile.level} cannot be decoded"):
            return level.decode(tile, segments)


@contextlib.contextmanager
def open_tiff(file: SlideFile) -> Iterator[tifffile.TiffFile]:
    """Open the TIFF directories with tifffile's log switched off: damage becomes a reason."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        with open_stream(file) as stream, tifffile.TiffFile(stream) as tiff:
            yield tiff
    finally:
        logger.disabled = before


@contextlib.contextmanager
def damage_as_slide_error(reason: str) -> Iterator[None]:
    """Raise the errors of tifffile, Pillow and the codecs on damaged bytes as ``SlideError``."""
    try:
        yield
    except _DAMAGE_ERRORS as error:
        # not the error's text, which may quote the file
        raise SlideError(f"{reason} ({type(error).__name__})") from None


def _colours_supported(page: tifffile.TiffPage) -> bool:
    """True for RGB and for YCbCr in interleaved JPEG.

    Also for an image without colour: this reader opens it to refuse it with the reason.
    """
    if page.samplesperpixel < 3 or page.photometric not in {RGB, YCBCR}:
        return True
    return page.photometric == RGB or (page.compression == JPEG and page.planarconfig == 1)


def _check(level: Level) -> None:
    """Check that the level is an 8-bit colour image.

    Raises:
        SlideError: it is not.
    """
    if level.samples < 3:
        raise SlideError(f"{level.samples} sample a pixel: greyscale or fluorescence, not a stained colour slide")
    if level.bits != 8:
        raise SlideError(f"{level.bits} bits a sample; allowed: 8; convert the slide with its own software")
    if level.samples > 4 or level.photometric not in {RGB, YCBCR}:
        raise SlideError(f"{level.samples} samples a pixel, photometric {level.photometric}; allowed: RGB or YCbCr")
    if level.compression == JPEG and level.samples == 4:
        raise SlideError("JPEG tiles of 4 components; allowed: RGB or YCbCr")
