"""Reader of plain images (PNG, JPEG, untiled TIFF) through Pillow.

They have one level. They are decoded whole, so large ones are refused: those belong in a tiled pyramidal TIFF. Of
several pages of a TIFF the largest is read, of equal ones the first; three pages that an OME-TIFF calls red, green and
blue are one image. A resolution counts as um/px where a microscope has it: most are those of a screen or printer.
"""

import math
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from milcore.errors import SlideError
from milcore.slides.mpp import UM_PER_INCH, square_mpp
from milcore.slides.reader import Bounds, Pixels, draw_thumbnail
from milcore.slides.tiff import damage_as_slide_error, open_tiff
from milcore.slides.tiff_metadata import Scale, ome_image_of, ome_images, scale_of
from milcore.slides.tiff_pages import MAX_PAGES, NumberedPage, unread_images

_FORMATS = ("PNG", "JPEG", "TIFF")
# a block of 64 px takes 1 bit of a JPEG at least; deflate packs 1,032 bytes into one, of 8 px in a PNG
MOST_PX_PER_BYTE = {"JPEG": 512, "PNG": 8_256}
_GREY_MODES = ("1", "L", "LA")
_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


class _Content(NamedTuple):
    """Content of a file, before it is decoded.

    Args:
        pages: numbers of those that are the image; none of a PNG or JPEG.
        bits: of a sample.
        scale: um/px and magnification.
        unread_images: sizes of further ones.
    """

    pages: tuple[int, ...]
    bits: int
    scale: Scale
    unread_images: tuple[tuple[int, int], ...]


class FlatImageReader:
    """One plain image, decoded whole."""

    def __init__(self, path: Path) -> None:
        with _open_image(path) as image:
            _check_bytes(image, path.stat().st_size)
            content = _find_largest_page(path) if image.format == "TIFF" else _content(image)
            if content.pages:
                image.seek(content.pages[0])
            is_colour_by_page = len(content.pages) > 1
            _check("RGB" if is_colour_by_page and image.mode == "L" else image.mode, content.bits)
            self.backend = f"flat:{str(image.format).lower()}"
            self.icc: bytes | None = image.info.get("icc_profile") or None
            self._pixels = _decode_channels(image, content.pages) if is_colour_by_page else _decode(image)
        self.size = (self._pixels.shape[1], self._pixels.shape[0])
        self.bounds = Bounds(0, 0, *self.size)
        self.level_downsamples: tuple[float, ...] = (1.0,)
        self.mpp, self.magnification = content.scale
        self.unread_images = content.unread_images

    @staticmethod
    def recognises(path: Path) -> bool:
        """True where Pillow recognises the file as PNG, JPEG or TIFF."""
        try:
            with _open_image(path):
                return True
        except UnidentifiedImageError:
            return False

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Read pixels (height, width, 3) from px (x, y), white outside the image.

        Raises:
            SlideError: the level is not 0.
        """
        if level != 0:
            raise SlideError(f"level {level} of a plain image; allowed: 0")
        patch = np.full((height, width, 3), 255, np.uint8)
        left, top = max(0, x), max(0, y)
        inside = self._pixels[top : max(top, y + height), left : max(left, x + width)]
        patch[top - y : top - y + inside.shape[0], left - x : left - x + inside.shape[1]] = inside
        return patch

    def thumbnail(self, max_edge: int) -> Pixels:
        """The whole image with its longer edge at most ``max_edge`` px."""
        return draw_thumbnail(self, max_edge)

    def close(self) -> None:
        """Do nothing: the pixels are in memory, the file is closed."""


def _check(mode: str, bits: int) -> None:
    """Check that an image is an 8-bit colour image.

    Raises:
        SlideError: it is not.
    """
    if mode in _GREY_MODES:
        raise SlideError(f"image of mode {mode}: greyscale, not a stained colour slide; allowed: {', '.join(_MODES)}")
    if mode not in _MODES:
        raise SlideError(f"image of mode {mode}; allowed: 8 bits per channel ({', '.join(_MODES)})")
    if bits > 8:
        raise SlideError(f"{bits} bits a sample; allowed: 8; convert the image with its own software")


def _check_bytes(image: Image.Image, size: int) -> None:
    """Check that a file is large enough for the px that it declares.

    Raises:
        SlideError: it is cut short, or was never an image; decoding it would take memory for nothing.
    """
    least = math.ceil(image.width * image.height / MOST_PX_PER_BYTE.get(str(image.format), math.inf))
    if size < least:
        raise SlideError(
            f"declares {image.width:,} x {image.height:,} px in {size:,} bytes; allowed: {least:,} bytes or more"
        )


def _bits(image: Image.Image) -> int:
    """Bits of a sample in a PNG or JPEG.

    Pillow reads those of 16 bits as 8.
    """
    return 16 if any(";16" in str(tile.args) for tile in getattr(image, "tile", ())) else 8


def _content(image: Image.Image) -> _Content:
    """Content of a PNG or JPEG, whose resolution Pillow gives in dots per inch."""
    dpi = image.info.get("dpi") or (0, 0)
    x, y = (UM_PER_INCH / float(per_inch) if per_inch else None for per_inch in dpi)
    return _Content((), _bits(image), Scale(square_mpp(x, y), None), ())


def _find_largest_page(path: Path) -> _Content:
    """Find the largest page of a TIFF.

    With the other two where its colours are pages of their own.

    Raises:
        SlideError: the page is damaged, or has more px than Pillow's limit against decompression bombs.
    """
    with damage_as_slide_error("its TIFF directory is damaged"), open_tiff(path) as tiff:
        pages: list[Any] = list(islice(tiff.pages, MAX_PAGES))
        areas = [page.imagewidth * page.imagelength for page in pages]
        number = areas.index(max(areas))
        if areas[number] > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise _too_large()
        images = ome_images(tiff)
        image, page = ome_image_of(number, images), pages[number]
        numbers: tuple[int, ...] = (number,)
        if image is not None and image.colour_pages and page.samplesperpixel == 1:
            numbers = image.colour_pages
        levels = [[NumberedPage(each, pages[each]) for each in numbers]]
        others = [NumberedPage(each, page) for each, page in enumerate(pages)]
        return _Content(
            numbers, int(np.max(page.bitspersample)), scale_of(page, image), unread_images(others, levels, images)
        )


def _too_large() -> SlideError:
    return SlideError(
        f"plain image of more than {Image.MAX_IMAGE_PIXELS or 0:,} px, which would be decoded whole; convert it to a "
        "tiled pyramidal TIFF"
    )


def _open_image(path: Path) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        SlideError: it has more px, or more text or colour profile, than Pillow's limits against decompression bombs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(path, formats=_FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise _too_large() from None
        except UnidentifiedImageError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise SlideError(f"image cannot be opened ({type(error).__name__})") from None


def _decode_channels(image: Image.Image, pages: Sequence[int]) -> Pixels:
    """Pixels of three pages of grey, as red, green and blue."""
    channels = []
    for number in pages:
        image.seek(number)
        channels.append(_decode(image)[..., 0])
    if len({channel.shape for channel in channels}) > 1:
        raise SlideError("its red, green and blue are pages of different sizes")
    return np.stack(channels, axis=-1)


def _decode(image: Image.Image) -> Pixels:
    try:
        rgba = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        # not the error's text, which may quote the file
        raise SlideError(f"image cannot be decoded ({type(error).__name__})") from None
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
