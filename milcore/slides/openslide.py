"""Slides through OpenSlide: Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, DICOM, and tiled pyramidal TIFF.

The surprise: after one unreadable tile OpenSlide refuses every later read on the same handle, so the handle is opened
anew after a failure.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import openslide

from milcore.errors import SlideError
from milcore.slides.reader import Pixels, draw_thumbnail


class OpenSlideReader:
    """One slide, open in OpenSlide."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = self._open()
        self.backend = f"openslide:{self._slide.properties.get('openslide.vendor', 'unknown')}"
        width, height = self._slide.dimensions
        self.size = (width, height)
        self.level_downsamples: tuple[float, ...] = tuple(self._slide.level_downsamples)
        self.mpp = _mean_mpp(self._slide.properties)

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether OpenSlide knows the file's format."""
        return openslide.OpenSlide.detect_format(str(path)) is not None

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Pixels (height, width, 3) of a level, from level-0 px (x, y); white outside the slide.

        Raises:
            SlideError: they cannot be read; other places still can.
        """
        try:
            rgba = np.asarray(self._slide.read_region((x, y), level, (width, height)))
        except openslide.OpenSlideError as error:
            self._slide.close()
            self._slide = self._open()
            raise SlideError(f"unreadable at ({x}, {y}), level {level}: {error}") from None
        return _on_white(rgba)

    def thumbnail(self, max_edge: int) -> Pixels:
        """The whole slide with its longer edge at most ``max_edge`` px."""
        return draw_thumbnail(self, max_edge)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(str(self._path))
        except openslide.OpenSlideError as error:
            raise SlideError(f"OpenSlide cannot open it: {error}") from None


def _on_white(rgba: Pixels) -> Pixels:
    if rgba[..., 3].min() == 255:
        return rgba[..., :3]
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _mean_mpp(properties: Mapping[str, str]) -> float | None:
    values = []
    for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y):
        try:
            values.append(float(properties[name]))
        except (KeyError, ValueError):
            return None
    mpp = sum(values) / 2.0
    return mpp if 0.0 < mpp < math.inf else None
