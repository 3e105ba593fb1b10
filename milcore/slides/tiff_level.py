"""One level of a tiled TIFF: grid of tiles, byte ranges and codec.

Codecs are checked against the directory: a tile is decoded into the size it declares, so that a tile of another size is
an error and takes no memory.
"""

import math
from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from milcore.errors import SlideError
from milcore.slides import jpeg_tile
from milcore.slides.reader import Pixels, on_white
from milcore.slides.tile_cache import TileIndex

RGB, YCBCR = 2, 6
JPEG = 7
_JPEG2000 = frozenset({34712, 33005})
# libjpeg's number of the colour space, by the TIFF's photometric
_JPEG_COLOURS = {RGB: 2, YCBCR: 3}
_BYTE_CODECS = frozenset({1, 5, 8, 32773, 32946, 34926, 50000})
_WEBP = frozenset({50001, 34927})
CODECS = _BYTE_CODECS | _JPEG2000 | _WEBP | {JPEG}
_LARGEST_TILE_PX = 4096
_ASSOCIATED_ALPHA = 1
_PLANAR = 2


class Level:
    """One level of a TIFF: grid of tiles, byte ranges and codec.

    A tile is one segment of the file, or one for each of red, green and blue: the planes of a planar page, or pages of
    one sample each.

    Args:
        pages: one, or three of one sample each.
    """

    def __init__(self, *pages: tifffile.TiffPage) -> None:
        page = pages[0]
        self.width, self.height = page.imagewidth, page.imagelength
        self.tile_width, self.tile_height = page.tilewidth, page.tilelength
        self.compression, self.photometric = int(page.compression), int(page.photometric)
        self.samples, self.bits = page.samplesperpixel, page.bitspersample
        self.planes = 3 if len(pages) == 3 or (page.planarconfig == _PLANAR and self.samples >= 3) else 1
        if len(pages) == 3:
            self.samples, self.photometric = 3, RGB
        # no codec makes a tile larger than its pixels, but for a few headers
        self.max_tile_bytes = 2 * self.tile_width * self.tile_height * self.samples + 65_536
        self.tables = jpeg_tile.shared_tables(page.jpegtables)
        self._header: tuple[bytes, jpeg_tile.Header | None] = b"", None
        self._premultiplied = tuple(page.extrasamples[:1]) == (_ASSOCIATED_ALPHA,)
        self._columns = -(-self.width // self.tile_width)
        self._rows = -(-self.height // self.tile_height)
        tiles = self._columns * self._rows
        of_page = tiles * (self.planes // len(pages))
        self.offsets: list[int] = []
        self.sizes = np.empty(0, np.uint64)
        self._decoders: list[Any] = []
        for each in pages:
            if not len(each.dataoffsets) == len(each.databytecounts) >= of_page:
                raise SlideError(f"its TIFF directory is damaged: {len(each.dataoffsets)} offsets for {of_page} tiles")
            self.offsets += each.dataoffsets[:of_page]
            self.sizes = np.append(self.sizes, np.asarray(each.databytecounts[:of_page], np.uint64))
            self._decoders.append(each.decode)
        if max(self.tile_width, self.tile_height) > _LARGEST_TILE_PX:
            raise SlideError(f"tiles of {self.tile_width} x {self.tile_height} px; allowed: up to {_LARGEST_TILE_PX}")

    def segments(self, tile: TileIndex) -> range:
        """Positions of the tile's segments in the lists of offsets and byte counts."""
        tiles = self._columns * self._rows
        return range(tile.row * self._columns + tile.column, self.planes * tiles, tiles)

    def has_bytes(self, left: float, top: float, right: float, bottom: float) -> bool:
        """True where a tile of an area, in px of this level, was scanned."""
        columns = slice(int(left) // self.tile_width, min(self._columns, math.ceil(right / self.tile_width)))
        rows = slice(int(top) // self.tile_height, math.ceil(bottom / self.tile_height))
        return bool(self.sizes[: self._columns * self._rows].reshape(self._rows, -1)[rows, columns].any())

    def header(self, data: bytes) -> jpeg_tile.Header:
        """The header of a JPEG tile, parsed once where successive tiles share its bytes."""
        head, header = self._header
        if header is None or not data.startswith(head):
            header = jpeg_tile.read_header(data)
            self._header = data[: header.scan], header
        return header

    def decode(self, tile: TileIndex, segments: Sequence[bytes]) -> Pixels:
        """RGB pixels (tile height, tile width, 3) of a compressed tile.

        Args:
            tile: of this level.
            segments: its bytes, one or three.
        """
        return self._decode(segments[0], tile) if self.planes == 1 else self._decode_planes(segments, tile)

    def _decode_planes(self, segments: Sequence[bytes], tile: TileIndex) -> Pixels:
        pixels = np.full((self.tile_height, self.tile_width, 3), 255, np.uint8)
        of_tile = self.segments(tile)
        for plane, data in enumerate(segments):
            if data:
                # of one page: the decoder counts the segments of all planes; of three: those of its own
                one_page = len(self._decoders) == 1
                decode = self._decoders[0 if one_page else plane]
                index = of_tile[plane if one_page else 0]
                tables = {"jpegtables": self.tables} if self.compression == JPEG else {}
                pixels[..., plane] = np.asarray(decode(data, index, _fullsize=True, **tables)[0])[0, ..., 0]
        return pixels

    def _decode(self, data: bytes, tile: TileIndex) -> Pixels:
        if self.compression in _BYTE_CODECS:
            pixels = np.asarray(self._decoders[0](data, self.segments(tile)[0], _fullsize=True)[0])[0]
        elif self.compression == JPEG:
            return self._jpeg(data)
        elif self.compression in _JPEG2000:
            pixels = self._jpeg2000(data)
        else:
            # a tile without alpha is opaque, whatever the directory's number of samples
            pixels = imagecodecs.webp_decode(data, out=self._out(self.samples), hasalpha=self.samples == 4)
        if pixels.shape[-1] == 4:
            pixels = on_white(pixels, premultiplied=self._premultiplied)
        return np.ascontiguousarray(pixels)

    def _jpeg2000(self, data: bytes) -> Pixels:
        """Pixels of a tile, with or without alpha, whatever the directory's number of samples."""
        try:
            return np.asarray(imagecodecs.jpeg2k_decode(data, out=self._out(self.samples)))
        except ValueError:
            return np.asarray(imagecodecs.jpeg2k_decode(data, out=self._out(3 if self.samples == 4 else 4)))

    def _out(self, samples: int) -> Pixels:
        return np.empty((self.tile_height, self.tile_width, samples), np.uint8)

    def _jpeg(self, data: bytes) -> Pixels:
        header = self.header(data)
        if header.width > self.tile_width or header.height > self.tile_height or header.components != 3:
            raise SlideError(f"a tile's JPEG is of {header.width} x {header.height} px, {header.components} components")
        colours = None if header.jfif else _JPEG_COLOURS[self.photometric]
        out = np.empty((header.height, header.width, 3), np.uint8)
        imagecodecs.jpeg8_decode(
            data, tables=self.tables, colorspace=colours, outcolorspace=_JPEG_COLOURS[RGB], out=out
        )
        padding = (0, self.tile_height - header.height), (0, self.tile_width - header.width), (0, 0)
        return np.pad(out, padding, constant_values=255) if padding[0][1] or padding[1][1] else out
