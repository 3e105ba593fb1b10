"""Microns per pixel from resolutions, and from descriptions as Aperio writes them.

Resolutions are in px per inch, cm or another unit; numbers may have a comma for the point. The surprise: many images
carry the resolution of a screen or printer, so values that no microscope has (outside 0.02 to 20 um/px) count as
unknown.
"""

import re

from milcore.errors import SlideError

FINEST_MPP, COARSEST_MPP = 0.02, 20.0
MOST_ANISOTROPIC = 0.02
UM_PER_INCH = 25_400.0
# of units as OME and ImageJ name them
UM_PER_UNIT_NAME = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "\\u00B5m": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4,
    "m": 1e6, "inch": UM_PER_INCH,
}  # fmt: skip
# by the number of the TIFF's tag
UM_PER_TAG_UNIT = {2: UM_PER_INCH, 3: 10_000.0}
_NUMBER = r"\s*=\s*([0-9]+(?:[.,][0-9]+)?(?:[eE][+-]?[0-9]+)?)"
_APERIO_MPP, _APERIO_MAGNIFICATION = re.compile(rf"\bMPP{_NUMBER}"), re.compile(rf"\bAppMag{_NUMBER}")


def square_mpp(x: float | None, y: float | None) -> float | None:
    """Mean um/px of both axes; None where unknown or outside a microscope's range.

    Raises:
        SlideError: the axes differ by more than 2 %.
    """
    if x is None or y is None or not all(FINEST_MPP <= mpp <= COARSEST_MPP for mpp in (x, y)):
        return None
    if max(x, y) > min(x, y) * (1.0 + MOST_ANISOTROPIC):
        raise SlideError(f"pixels are not square: {x:g} x {y:g} um; resample the slide to square ones")
    return (x + y) / 2.0


def parse_number(text: str | None) -> float | None:
    """Number written with a point or a comma; None for other text."""
    try:
        return None if text is None else float(text.strip().replace(",", "."))
    except ValueError:
        return None


def aperio_mpp(description: str) -> float | None:
    """um/px in a description as Aperio's, which others write too; None where absent."""
    match = _APERIO_MPP.search(description)
    return parse_number(match[1]) if match else None


def aperio_magnification(description: str) -> float | None:
    """Magnification of the objective in a description as Aperio's; None where absent."""
    match = _APERIO_MAGNIFICATION.search(description)
    return parse_number(match[1]) if match else None


def magnification_mpp(magnification: float | None) -> float | None:
    """um/px that an objective is taken to have: ``10 / magnification``, 0.25 at 40x.

    None where unknown or outside a microscope's range. Scanners differ by up to a third: 40x is 0.23 to 0.33 um/px.
    """
    return None if not magnification else square_mpp(10.0 / magnification, 10.0 / magnification)


def tag_mpp(resolution: tuple[int, int] | None, um: float | None) -> float | None:
    """um/px of a TIFF resolution tag; None where absent.

    Args:
        resolution: px per unit, as a fraction.
        um: of one unit; None where it is unknown.
    """
    if resolution is None or um is None or 0 in resolution:
        return None
    return um * resolution[1] / resolution[0]


# scales whose ratio is this close to 1 count as equal: resampling would only blur
SAME_SCALE = 0.005
