"""What a slide is to the rest of milcore: a size, a scale, levels, and pixels on request.

``read_area`` is the one way from level-0 places to pixels of any scale, and ``draw_thumbnail`` shows the whole slide,
both in memory that does not grow with the slide. (x, y) are level-0 px from the upper left; sizes are (width, height).
"""

import math
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from milcore.errors import SlideError
from milcore.slides.resample import area_resize
from milcore.tiling import SAME_SCALE

_BLOCK_PX = 2048
_SMALLEST_BLOCK_PX = 256
_MOST_HOLES = 1000

Pixels = npt.NDArray[np.uint8]


class SlideReader(Protocol):
    """One open slide."""

    backend: str
    size: tuple[int, int]
    mpp: float | None
    level_downsamples: tuple[float, ...]

    def __init__(self, path: Path) -> None: ...

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether this backend knows the file's format."""
        ...

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Pixels (height, width, 3) of a level, from level-0 px (x, y); white outside the slide.

        Raises:
            SlideError: they cannot be read; other places still can.
        """
        ...

    def thumbnail(self, max_edge: int) -> Pixels:
        """The whole slide with its longer edge at most ``max_edge`` px."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def read_area(
    reader: SlideReader, corner: tuple[float, float], extent: tuple[float, float], size: tuple[int, int]
) -> Pixels:
    """A rectangle of the slide at the scale ``extent / size``: the nearest finer level, area-resampled.

    Where the level's scale is within 0.5 % of the one asked, its pixels are returned as they are.

    Args:
        reader: the slide.
        corner: (x, y) in level-0 px.
        extent: (width, height) in level-0 px.
        size: (width, height) of the result in px.

    Raises:
        SlideError: the pixels cannot be read.
    """
    scale = extent[0] / size[0]
    level = finer_level(reader.level_downsamples, scale)
    downsample = reader.level_downsamples[level]
    x, y = math.floor(corner[0]), math.floor(corner[1])
    if abs(scale / downsample - 1.0) <= SAME_SCALE and (x, y) == corner:
        return reader.read(x, y, level, *size)
    left, top = (corner[0] - x) / downsample, (corner[1] - y) / downsample
    right, bottom = left + extent[0] / downsample, top + extent[1] / downsample
    pixels = reader.read(x, y, level, math.ceil(right - 1e-6), math.ceil(bottom - 1e-6))
    return area_resize(pixels, (left, top, right, bottom), size)


def finer_level(downsamples: tuple[float, ...], scale: float) -> int:
    """The level of the largest downsample that is not above ``scale`` (by more than 0.5 %); level 0 if all are."""
    fine = [level for level, downsample in enumerate(downsamples) if downsample <= scale * (1.0 + SAME_SCALE)]
    return max(fine, key=lambda level: downsamples[level], default=0)


def draw_thumbnail(reader: SlideReader, max_edge: int) -> Pixels:
    """The whole slide with its longer edge at most ``max_edge`` px, block by block.

    A place that cannot be read takes the colour of the nearest one that can, so that what lies around it decides
    whether it counts as tissue.

    Raises:
        SlideError: nothing, or too little, can be read.
    """
    scale = max(1.0, max(reader.size) / max_edge)
    width, height = (max(1, round(edge / scale)) for edge in reader.size)
    canvas = _Canvas(reader, width, height)
    canvas.paint(0, 0, width, height)
    return canvas.filled()


class _Canvas:
    """A thumbnail being painted: a block too large or unreadable is painted by quarters."""

    def __init__(self, reader: SlideReader, width: int, height: int) -> None:
        self._reader = reader
        self._pixels = np.full((height, width, 3), 255, np.uint8)
        self._hole = np.zeros((height, width), bool)
        self._holes = 0
        self._scale = (reader.size[0] / width, reader.size[1] / height)
        level = finer_level(reader.level_downsamples, self._scale[0])
        self._step = self._scale[0] / reader.level_downsamples[level]

    def paint(self, left: int, top: int, right: int, bottom: int) -> None:
        """Paint a block, in px of the thumbnail."""
        edge_px = max(right - left, bottom - top) * self._step
        if edge_px > _BLOCK_PX and max(right - left, bottom - top) > 1:
            self._quarter(left, top, right, bottom)
            return
        corner = (left * self._scale[0], top * self._scale[1])
        size = (right - left, bottom - top)
        extent = (size[0] * self._scale[0], size[1] * self._scale[1])
        try:
            self._pixels[top:bottom, left:right] = read_area(self._reader, corner, extent, size)
        except SlideError as error:
            if edge_px > _SMALLEST_BLOCK_PX and max(size) > 1:
                self._quarter(left, top, right, bottom)
            else:
                self._leave(left, top, right, bottom, error)

    def filled(self) -> Pixels:
        """The thumbnail, each hole in the colour of the nearest painted place."""
        if self._hole.all():
            raise SlideError("no part of the slide can be read")
        if not self._holes:
            return self._pixels
        nearest = ndimage.distance_transform_edt(self._hole, return_distances=False, return_indices=True)
        return np.asarray(self._pixels[tuple(nearest)])

    def _quarter(self, left: int, top: int, right: int, bottom: int) -> None:
        middle, centre = (left + right + 1) // 2, (top + bottom + 1) // 2
        for x0, x1 in ((left, middle), (middle, right)):
            for y0, y1 in ((top, centre), (centre, bottom)):
                if x0 < x1 and y0 < y1:
                    self.paint(x0, y0, x1, y1)

    def _leave(self, left: int, top: int, right: int, bottom: int, error: SlideError) -> None:
        self._hole[top:bottom, left:right] = True
        self._holes += 1
        if self._holes > _MOST_HOLES:
            raise SlideError(f"more than {_MOST_HOLES} places of the slide are unreadable: {error}")
