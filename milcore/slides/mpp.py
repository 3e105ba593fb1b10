"""Microns per pixel from TIFF resolution tags, Aperio descriptions and OME-XML.

Tags are in px per inch or cm; numbers may have a comma for the point. The surprise: many TIFFs carry the resolution of
a screen or printer, so values that no microscope has (outside 0.02 to 20 um/px) count as unknown.
"""

import re
import xml.etree.ElementTree as ET

from milcore.errors import SlideError

FINEST_MPP, COARSEST_MPP = 0.02, 20.0
MOST_ANISOTROPIC = 0.02
_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}
_UM_PER_OME_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_APERIO_MPP = re.compile(r"\bMPP\s*=\s*([0-9]+(?:[.,][0-9]+)?(?:[eE][+-]?[0-9]+)?)")


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
    """um/px in the image description of an Aperio slide; None where absent."""
    match = _APERIO_MPP.search(description)
    return parse_number(match[1]) if match else None


def ome_mpp(xml: str) -> tuple[float | None, float | None]:
    """um/px of the first image in OME-XML, in x and y; None where absent."""
    try:
        root = ET.fromstring(xml)  # noqa: S314 - as above
    except (ET.ParseError, ValueError):
        return None, None
    pixels = root.find(".//{*}Pixels")
    if pixels is None:
        return None, None
    sizes = []
    for axis in "XY":
        size = parse_number(pixels.get(f"PhysicalSize{axis}"))
        unit = _UM_PER_OME_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        sizes.append(None if size is None or unit is None else size * unit)
    return sizes[0], sizes[1]


def tag_mpp(resolution: tuple[int, int] | None, unit: int) -> float | None:
    """um/px of a TIFF resolution tag; None where absent.

    Args:
        resolution: px per unit, as a fraction.
        unit: 2 is inch, 3 is cm.
    """
    if resolution is None or unit not in _UM_PER_UNIT or 0 in resolution:
        return None
    return _UM_PER_UNIT[unit] * resolution[1] / resolution[0]


# scales whose ratio is this close to 1 count as equal: resampling would only blur
SAME_SCALE = 0.005
