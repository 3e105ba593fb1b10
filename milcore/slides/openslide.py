"""Slides through OpenSlide: Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, DICOM, and tiled pyramidal TIFF.

The surprise: after one unreadable tile OpenSlide refuses every later read on the same handle, to all threads, so a read
that fails is tried once more on a handle of its own.
"""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from openslide import lowlevel
from PIL import Image

from milcore.errors import SlideError
from milcore.slides.mpp import parse_number, square_mpp
from milcore.slides.reader import Pixels, draw_thumbnail, level_downsample

_OPAQUE = 0xFF000000


class OpenSlideReader:
    """One slide, open in OpenSlide."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = self._open()
        self.backend = f"openslide:{self._slide.properties.get('openslide.vendor', 'unknown')}"
        width, height = self._slide.dimensions
        self.size = (width, height)
        self.level_downsamples: tuple[float, ...] = tuple(
            level_downsample(self.size, level) for level in self._slide.level_dimensions
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
        words = self.read_bgrx(x, y, level, width, height)
        packed = Image.frombuffer("RGB", (width, height), words, "raw", "BGRX", 0, 1).tobytes()
        return np.frombuffer(packed, np.uint8).reshape(height, width, 3)

    def read_bgrx(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """What ``read`` reads as OpenSlide paints it, shape (height, width, 4): blue, green, red and a spare byte.

        Raises:
            SlideError: the pixels cannot be read; other places still can.
        """
        place = (x, y, level, width, height)
        try:
            return _paint(self._slide, *place)
        except openslide.OpenSlideError:
            fresh = self._open()  # this thread's failure, or another's earlier one: a handle of its own tells
        try:
            words = _paint(fresh, *place)
        except openslide.OpenSlideError as error:
            raise SlideError(f"unreadable at ({x}, {y}), level {level}: {error}") from None
        self._slide = fresh  # the old handle is freed when no other thread reads through it
        return words

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


def _paint(  # noqa: PLR0913, PLR0917 - a slide and a place in it
    slide: openslide.OpenSlide, x: int, y: int, level: int, width: int, height: int
) -> Pixels:
    left, top = (round(at * slide.level_downsamples[level]) for at in (x, y))
    words = np.empty((height, width, 4), np.uint8)
    target = (ctypes.c_uint32 * (height * width)).from_buffer(words.data)
    # the wrapped function turns words into RGBA, a twentieth of all work where they are to become a JPEG
    lowlevel._read_region(slide._osr, target, left, top, level, width, height)  # noqa: SLF001
    return premultiplied_on_white(words)


def premultiplied_on_white(words: Pixels) -> Pixels:
    """Words (h, w, 4), colours multiplied by the fourth, alpha: what is not all opaque lets white through."""
    if np.bitwise_and.reduce(words.view(np.uint32), axis=None) >= _OPAQUE:
        return words
    shown = words[..., :3].astype(np.uint16) + (255 - words[..., 3:])
    return np.dstack([np.minimum(shown, 255).astype(np.uint8), np.full_like(words[..., 3:], 255)])


def _mpp(properties: Mapping[str, str]) -> float | None:
    return square_mpp(*(parse_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"))


def _icc(slide: openslide.OpenSlide) -> bytes | None:
    profile = slide.color_profile
    return None if profile is None else bytes(profile.tobytes())
