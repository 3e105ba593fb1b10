"""Reader of slides through OpenSlide.

Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, DICOM, and tiled pyramidal TIFF. The surprise: after one unreadable
tile OpenSlide refuses every later read on the same handle, in all threads, so a read that fails is repeated once on a
new handle.
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
from milcore.slides.reader import Bounds, Pixels, draw_thumbnail, level_downsample, on_white

_OPAQUE = 0xFF000000


class OpenSlideReader:
    """One slide opened with OpenSlide."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = self._open()
        self.backend = f"openslide:{self._slide.properties.get('openslide.vendor', 'unknown')}"
        width, height = self._slide.dimensions
        self.size = (width, height)
        self.bounds = bounds_of(self._slide.properties, self.size)
        self.level_downsamples: tuple[float, ...] = tuple(
            level_downsample(self.size, level) for level in self._slide.level_dimensions
        )
        self.mpp = _mpp(self._slide.properties)
        self.magnification = parse_number(self._slide.properties.get("openslide.objective-power"))
        self.icc = _icc(self._slide)
        self.unread_images: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def recognises(path: Path) -> bool:
        """True where OpenSlide recognises the file's format."""
        return openslide.OpenSlide.detect_format(str(path)) is not None

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Read pixels (height, width, 3) of a level, white outside the slide.

        Raises:
            SlideError: the pixels cannot be read; other regions still can.
        """
        bgrx = self.read_bgrx(x, y, level, width, height)
        packed = Image.frombuffer("RGB", (width, height), bgrx, "raw", "BGRX", 0, 1).tobytes()
        return np.frombuffer(packed, np.uint8).reshape(height, width, 3)

    def read_bgrx(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Read BGRX pixels (height, width, 4): blue, green, red, a spare byte.

        Raises:
            SlideError: the pixels cannot be read; other regions still can.
        """
        region = (x, y, level, width, height)
        try:
            return _paint(self._slide, *region)
        except openslide.OpenSlideError:
            new_slide = self._open()  # the error may be an earlier one of another region: a new handle has none
        try:
            bgrx = _paint(new_slide, *region)
        except openslide.OpenSlideError as error:
            # not the error's text, which may quote the file
            raise SlideError(f"unreadable at ({x}, {y}), level {level} ({type(error).__name__})") from None
        self._slide = new_slide  # the old handle is freed when no other thread reads through it
        return bgrx

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
            raise SlideError(f"OpenSlide cannot open it ({type(error).__name__})") from None


def _paint(  # noqa: PLR0913, PLR0917 - a slide and a region of it
    slide: openslide.OpenSlide, x: int, y: int, level: int, width: int, height: int
) -> Pixels:
    left, top = (round(edge * slide.level_downsamples[level]) for edge in (x, y))
    bgra = np.empty((height, width, 4), np.uint8)
    target = (ctypes.c_uint32 * (height * width)).from_buffer(bgra.data)
    # the wrapped function converts to RGBA, a twentieth of all work where the pixels are to become a JPEG
    lowlevel._read_region(slide._osr, target, left, top, level, width, height)  # noqa: SLF001
    return premultiplied_on_white(bgra)


def premultiplied_on_white(bgra: Pixels) -> Pixels:
    """Premultiplied pixels (h, w, 4), alpha last, composited on white."""
    if np.bitwise_and.reduce(bgra.view(np.uint32), axis=None) >= _OPAQUE:
        return bgra
    return np.dstack([on_white(bgra, premultiplied=True), np.full_like(bgra[..., 3:], 255)])


def _mpp(properties: Mapping[str, str]) -> float | None:
    return square_mpp(*(parse_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"))


def bounds_of(properties: Mapping[str, str], size: tuple[int, int]) -> Bounds:
    """The bounds that the properties name inside the slide, else the whole slide."""
    values = [properties.get(f"openslide.bounds-{name}", "") for name in ("x", "y", "width", "height")]
    if not all(value.isdecimal() for value in values):
        return Bounds(0, 0, *size)
    bounds = Bounds(*map(int, values))
    is_inside = bounds.left + bounds.width <= size[0] and bounds.top + bounds.height <= size[1]
    return bounds if is_inside and bounds.width and bounds.height else Bounds(0, 0, *size)


def _icc(slide: openslide.OpenSlide) -> bytes | None:
    profile = slide.color_profile
    return None if profile is None else bytes(profile.tobytes())
