"""Slides through OpenSlide: Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, DICOM, and tiled pyramidal TIFF.

The surprise: after one unreadable tile OpenSlide refuses every later read on the same handle, so the handle is opened
anew after a failure.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from milcore.errors import SlideError
from milcore.slides.reader import Pixels, draw_thumbnail, on_white, whole_downsample
from milcore.slides.scale import number, square_mpp


class OpenSlideReader:
    """One slide, open in OpenSlide."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = self._open()
        self.backend = f"openslide:{self._slide.properties.get('openslide.vendor', 'unknown')}"
        width, height = self._slide.dimensions
        self.size = (width, height)
        self.level_downsamples: tuple[float, ...] = tuple(
            whole_downsample(self.size, level) for level in self._slide.level_dimensions
        )
        self.mpp = _mpp(self._slide.properties)
        self.icc = _icc(self._slide)

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether OpenSlide knows the file's format."""
        return openslide.OpenSlide.detect_format(str(path)) is not None

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Pixels (height, width, 3) of a level from its px (x, y); white outside the slide.

        Raises:
            SlideError: they cannot be read; other places still can.
        """
        slide = self._slide
        at = round(x * slide.level_downsamples[level]), round(y * slide.level_downsamples[level])
        try:
            return _rgb(slide.read_region(at, level, (width, height)))
        except openslide.OpenSlideError as error:
            self._slide = self._open()  # the old handle is freed when no other thread reads through it
            raise SlideError(f"unreadable at ({x}, {y}), level {level}: {error}") from None

    def thumbnail(self, max_edge: int) -> Pixels:
        """The whole slide with its longer edge at most ``max_edge`` px."""
        return draw_thumbnail(self, max_edge)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(str(self._path))
        except openslide.OpenSlideError as error:
            raise SlideError(f"OpenSlide cannot open it: {error}") from None


def _rgb(image: Image.Image) -> Pixels:
    """A region (h, w, 3) laid on white; where it is all opaque, packed by Pillow without a copy between."""
    if np.frombuffer(image.tobytes("raw", "A"), np.uint8).min() != 255:
        return on_white(np.asarray(image))
    return np.frombuffer(image.tobytes("raw", "RGB"), np.uint8).reshape(image.height, image.width, 3)


def _mpp(properties: Mapping[str, str]) -> float | None:
    return square_mpp(*(number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"))


def _icc(slide: openslide.OpenSlide) -> bytes | None:
    profile = slide.color_profile
    return None if profile is None else bytes(profile.tobytes())
