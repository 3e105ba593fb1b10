"""Scale, objective and vendor of a TIFF page."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import tifffile

from milcore.slides.mpp import UM_PER_TAG_UNIT, UM_PER_UNIT_NAME, aperio_magnification, aperio_mpp, square_mpp, tag_mpp
from milcore.slides.ome import OmeImage, is_ome, read_ome_xml

_DESCRIPTION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 270, 282, 283, 296
_INCH = 2
_IMAGEJ_UNIT = re.compile(r"^unit=(.*)$", re.MULTILINE)


class Scale(NamedTuple):
    """Um/px and objective's magnification of an image; None where unknown."""

    mpp: float | None
    magnification: float | None


def description_of(page: tifffile.TiffPage) -> str:
    """Description of a page.

    Bytes that are no UTF-8, as some scanners write, are taken for Latin-1.
    """
    value = page.tags.valueof(_DESCRIPTION)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin-1")
    return value if isinstance(value, str) else ""


def ome_images(tiff: tifffile.TiffFile) -> tuple[OmeImage, ...]:
    """The images of an OME-TIFF; none of another TIFF."""
    description = description_of(tiff.pages.first)
    return read_ome_xml(description) if is_ome(description) else ()


def ome_image_of(number: int, images: Sequence[OmeImage]) -> OmeImage | None:
    """The image that a page belongs to; None for a page of none."""
    return next((image for image in images if number in image.pages), None)


def is_aperio(page: tifffile.TiffPage) -> bool:
    """True for a page of Aperio, or of a scanner that writes its format."""
    return description_of(page).startswith("Aperio ")


def vendor_of(page: tifffile.TiffPage, image: OmeImage | None) -> str:
    """Vendor of a page, as a reader's name has it."""
    if is_aperio(page):
        return "aperio"
    return "ome" if image is not None else "geotiff" if page.is_geotiff else "generic"


def scale_of(page: tifffile.TiffPage, image: OmeImage | None) -> Scale:
    """Scale of a page.

    From the OME-XML of its image, ``MPP =`` in its description (Aperio, Motic and others), ImageJ's unit, or its
    resolution tags, the first that is of a microscope. The tags of an Aperio slide are not believed.

    Raises:
        SlideError: pixels are not square.
    """
    description = description_of(page)
    mpp = None if image is None else square_mpp(*image.mpp)
    in_description = aperio_mpp(description)
    mpp = square_mpp(in_description, in_description) if mpp is None else mpp
    if mpp is None and not description.startswith("Aperio "):
        mpp = square_mpp(*_tag_mpp(page, description))
    magnification = aperio_magnification(description) if image is None else image.magnification
    return Scale(mpp if mpp is None or math.isfinite(mpp) else None, magnification)


def _tag_mpp(page: tifffile.TiffPage, description: str) -> tuple[float | None, float | None]:
    """um/px by the resolution tags, whose unit ImageJ writes into the description."""
    unit = _IMAGEJ_UNIT.search(description) if description.startswith("ImageJ=") else None
    x, y = page.tags.valueof(_X_RESOLUTION), page.tags.valueof(_Y_RESOLUTION)
    if unit is not None:
        um = UM_PER_UNIT_NAME.get(unit[1].strip())
        return tag_mpp(x, um), tag_mpp(y, um)
    um = UM_PER_TAG_UNIT.get(int(page.tags.valueof(_RESOLUTION_UNIT) or _INCH))
    return tag_mpp(x, um), tag_mpp(y, um)
