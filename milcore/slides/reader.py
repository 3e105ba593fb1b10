"""Protocol of slide readers, and reads at any scale through it.

``read_area`` reads a level-0 rectangle at any scale, and ``draw_thumbnail`` the whole slide, both in memory that does
not grow with the slide. Sizes are (width, height).
"""

import math
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from milcore.errors import SlideError, UnreachableSlideError
from milcore.slides.mpp import SAME_SCALE
from milcore.slides.resample import area_resize

_BLOCK_PX = 2048
_SMALLEST_BLOCK_PX = 256
_MAX_UNREADABLE_BLOCKS = 1000
_EPSILON = 1e-6

Pixels = npt.NDArray[np.uint8]


class Bounds(NamedTuple):
    """The part of a slide that was scanned, in level-0 px.

    A viewer may show this part alone, and then counts px from its corner.
    """

    left: int
    top: int
    width: int
    height: int


class SlideReader(Protocol):
    """One open slide. Threads may read it at the same time.

    ``backend`` names reader and vendor; ``mpp`` is um/px of level 0, None where unknown; ``icc`` is the colour profile,
    which is kept but not applied; ``level_downsamples`` is level-0 px per px of each level. ``bounds`` is the whole
    slide where the file names no part of it. ``magnification`` is that of the objective, None where unknown;
    ``unread_images`` are the sizes (width, height) of further images in the file, such as other regions of interest.
    """

    backend: str
    size: tuple[int, int]
    bounds: Bounds
    mpp: float | None
    magnification: float | None
    icc: bytes | None
    level_downsamples: tuple[float, ...]
    unread_images: tuple[tuple[int, int], ...]

    def __init__(self, path: Path) -> None: ...

    @staticmethod
    def recognises(path: Path) -> bool:
        """True where this backend recognises the file's format."""
        ...

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Read pixels (height, width, 3) of a level, white outside the slide.

        Args:
            x: left edge, px of the level.
            y: top edge, px of the level.
            level: to read from.
            width: px.
            height: px.

        Raises:
            SlideError: the pixels cannot be read; other regions still can.
        """
        ...

    def thumbnail(self, max_edge: int) -> Pixels:
        """The whole slide with its longer edge at most ``max_edge`` px."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


@runtime_checkable
class JpegTiles(Protocol):
    """A reader with access to the compressed JPEG tiles of a slide."""

    level_downsamples: tuple[float, ...]

    def jpeg_tile(self, x: int, y: int, level: int, width: int, height: int) -> bytes | None:
        """Standalone JPEG file of a region that is exactly one tile; else None.

        A tile that was never scanned has no bytes.

        Args:
            x: left edge, px of the level.
            y: top edge, px of the level.
            level: to read from.
            width: px.
            height: px.

        Raises:
            SlideError: the tile is damaged.
        """
        ...


@runtime_checkable
class BgrxReader(Protocol):
    """A reader whose library paints blue, green, red and a spare byte per px.

    A JPEG encoder takes such pixels as they are.
    """

    level_downsamples: tuple[float, ...]

    def read_bgrx(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """As ``read``, but BGRX pixels (height, width, 4), without the copy to RGB.

        Raises:
            SlideError: the pixels cannot be read; other regions still can.
        """
        ...


class LevelBox(NamedTuple):
    """A rectangle in px of one level."""

    level: int
    left: float
    top: float
    right: float
    bottom: float


def level_box(
    downsamples: tuple[float, ...], corner: tuple[float, float], extent: tuple[float, float], scale: float
) -> LevelBox:
    """A level-0 rectangle in px of the level to read at a scale.

    That is the coarsest level that is not coarser than the scale. Where its scale is within 0.5 % of the one asked, the
    box has whole px, to be read without resampling.

    Args:
        downsamples: of the levels.
        corner: (x, y) in level-0 px.
        extent: (width, height) in level-0 px.
        scale: level-0 px per px of the result.
    """
    level = finer_level(downsamples, scale)
    downsample = downsamples[level]
    left, top = corner[0] / downsample, corner[1] / downsample
    if abs(scale / downsample - 1.0) <= SAME_SCALE:
        left, top = float(round(left)), float(round(top))
        width, height = round(extent[0] / scale), round(extent[1] / scale)
        return LevelBox(level, left, top, left + width, top + height)
    return LevelBox(level, left, top, left + extent[0] / downsample, top + extent[1] / downsample)


def read_area(
    reader: SlideReader, corner: tuple[float, float], extent: tuple[float, float], size: tuple[int, int]
) -> Pixels:
    """Read a rectangle at the scale ``extent / size``.

    It is area-resampled from the coarsest level that is not coarser than that scale; where that level's
    scale is within 0.5 % of the one asked, its pixels are returned as they are.

    Args:
        reader: the slide.
        corner: (x, y) in level-0 px.
        extent: (width, height) in level-0 px.
        size: (width, height) of the result in px.

    Raises:
        SlideError: the pixels cannot be read.
    """
    box = level_box(reader.level_downsamples, corner, extent, extent[0] / size[0])
    if (box.right - box.left, box.bottom - box.top) == size:
        return reader.read(int(box.left), int(box.top), box.level, *size)
    x, y = math.floor(box.left + _EPSILON), math.floor(box.top + _EPSILON)
    left, top, right, bottom = box.left - x, box.top - y, box.right - x, box.bottom - y
    pixels = reader.read(x, y, box.level, math.ceil(right - _EPSILON), math.ceil(bottom - _EPSILON))
    return area_resize(pixels, (max(0.0, left), max(0.0, top), right, bottom), size)


def level_downsample(size: tuple[int, int], level_size: tuple[int, int]) -> float:
    """Level-0 px per px of a level.

    The integer that gives the level's size by rounding each edge up or down, where there is one; else the mean ratio of
    the edges.
    """
    ratio = (size[0] / level_size[0] + size[1] / level_size[1]) / 2.0
    whole = round(ratio)
    fits = all(edge // whole <= short <= -(-edge // whole) for edge, short in zip(size, level_size, strict=True))
    return float(whole) if fits else ratio


def on_white(rgba: Pixels, *, premultiplied: bool) -> Pixels:
    """Pixels (h, w, 4), alpha last, composited on white, shape (h, w, 3).

    Args:
        rgba: colours and alpha, 255 where opaque.
        premultiplied: True where the colours come multiplied by alpha.
    """
    if rgba[..., 3].min() == 255:
        return rgba[..., :3]
    alpha = rgba[..., 3:].astype(np.uint16)
    if premultiplied:
        pixels: Pixels = np.minimum(rgba[..., :3] + (255 - alpha), 255).astype(np.uint8)
        return pixels
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def finer_level(downsamples: tuple[float, ...], scale: float) -> int:
    """The coarsest level not coarser than ``scale``; level 0 if all are coarser.

    A downsample up to 0.5 % above ``scale`` counts as equal.
    """
    fine = [level for level, downsample in enumerate(downsamples) if downsample <= scale * (1.0 + SAME_SCALE)]
    return max(fine, key=lambda level: downsamples[level], default=0)


def draw_thumbnail(reader: SlideReader, max_edge: int) -> Pixels:
    """The whole slide with its longer edge at most ``max_edge`` px, read by blocks.

    An unreadable block takes the colour of the nearest readable px, so that its surroundings decide whether it counts
    as tissue.

    Raises:
        SlideError: no block, or too few, can be read.
    """
    scale = max(1.0, max(reader.size) / max_edge)
    width, height = (max(1, round(edge / scale)) for edge in reader.size)
    canvas = _Canvas(reader, width, height)
    canvas.paint(0, 0, width, height)
    return canvas.filled()


class _Canvas:
    """Pixels of a thumbnail; a block too large or unreadable is read by quarters."""

    def __init__(self, reader: SlideReader, width: int, height: int) -> None:
        self._reader = reader
        self._pixels = np.full((height, width, 3), 255, np.uint8)
        self._unreadable = np.zeros((height, width), bool)
        self._unreadable_blocks = 0
        self._scale = (reader.size[0] / width, reader.size[1] / height)
        level = finer_level(reader.level_downsamples, self._scale[0])
        self._step = self._scale[0] / reader.level_downsamples[level]

    def paint(self, left: int, top: int, right: int, bottom: int) -> None:
        """Read a block, given in px of the thumbnail, into the canvas."""
        edge_px = max(right - left, bottom - top) * self._step
        if edge_px > _BLOCK_PX and max(right - left, bottom - top) > 1:
            self._quarter(left, top, right, bottom)
            return
        corner = (left * self._scale[0], top * self._scale[1])
        size = (right - left, bottom - top)
        extent = (size[0] * self._scale[0], size[1] * self._scale[1])
        try:
            self._pixels[top:bottom, left:right] = read_area(self._reader, corner, extent, size)
        except UnreachableSlideError:
            raise
        except SlideError as error:
            if edge_px > _SMALLEST_BLOCK_PX and max(size) > 1:
                self._quarter(left, top, right, bottom)
            else:
                self._mark_unreadable(left, top, right, bottom, error)

    def filled(self) -> Pixels:
        """The thumbnail, unreadable px in the colour of the nearest readable one.

        Raises:
            SlideError: no block could be read.
        """
        if self._unreadable.all():
            raise SlideError("no part of the slide can be read")
        if not self._unreadable_blocks:
            return self._pixels
        nearest = ndimage.distance_transform_edt(self._unreadable, return_distances=False, return_indices=True)
        return np.asarray(self._pixels[tuple(nearest)])

    def _quarter(self, left: int, top: int, right: int, bottom: int) -> None:
        middle, centre = (left + right + 1) // 2, (top + bottom + 1) // 2
        for x0, x1 in ((left, middle), (middle, right)):
            for y0, y1 in ((top, centre), (centre, bottom)):
                if x0 < x1 and y0 < y1:
                    self.paint(x0, y0, x1, y1)

    def _mark_unreadable(self, left: int, top: int, right: int, bottom: int, error: SlideError) -> None:
        self._unreadable[top:bottom, left:right] = True
        self._unreadable_blocks += 1
        if self._unreadable_blocks > _MAX_UNREADABLE_BLOCKS:
            raise SlideError(f"more than {_MAX_UNREADABLE_BLOCKS} blocks of the slide are unreadable: {error}")
