"""Tissue mask of a thumbnail by saturation, without pen marks. Pure, no I/O.

Otsu's threshold alone fails at both ends (it splits an empty slide's noise, and a slide that is all tissue), so it is
clipped to two saturations. From strong ink the mask of the pen is grown over its blurred rim, as far as that has a hue
of ink: alone, such pale red would pass for eosin. Ink in the colours of a stain (purple, dark red over tissue) passes
in part. Axis words: row, column.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Mask = npt.NDArray[np.bool_]

LOWEST_SATURATION = 0.06
HIGHEST_SATURATION = 0.12
DARKEST_VALUE = 0.2
PEN_MARGIN_PX = 2
PEN_RIM_PX = 24
# a smaller red area may be the blood of a vessel, whose surroundings are tissue
PEN_STROKE_PX = 4

METHOD: dict[str, Any] = {
    "method": "saturation-otsu-pen-rim",
    "lowest_saturation": LOWEST_SATURATION,
    "highest_saturation": HIGHEST_SATURATION,
    "darkest_value": DARKEST_VALUE,
    "pen_margin_px": PEN_MARGIN_PX,
    "pen_rim_px": PEN_RIM_PX,
    "pen_stroke_px": PEN_STROKE_PX,
}


def tissue_mask(thumbnail: npt.NDArray[np.uint8]) -> Mask:
    """Tissue mask: saturated above the threshold, not near-black, at a margin from pen marks.

    Args:
        thumbnail: shape (row, column, 3), RGB; best at about 10 um/px, where nuclei blur into their tissue.
    """
    hue, saturation, value = _hsv(thumbnail)
    smooth = ndimage.median_filter(saturation, size=3)
    threshold = np.clip(otsu(smooth), LOWEST_SATURATION, HIGHEST_SATURATION)
    rim = _rim(hue, saturation, value)
    ink = _pen(hue, saturation)
    strokes = ndimage.binary_opening(ink, structure=np.ones((PEN_STROKE_PX, PEN_STROKE_PX)))
    grown = ink | ndimage.binary_dilation(strokes, mask=rim, iterations=PEN_RIM_PX)
    pen = ndimage.binary_dilation(grown, iterations=PEN_MARGIN_PX)
    return np.asarray((smooth > threshold) & (value > DARKEST_VALUE) & ~pen)


def otsu(values: npt.NDArray[np.float32]) -> float:
    """Otsu's threshold of values in [0, 1], of 256 levels.

    It maximises ``w0 w1 (m0 - m1)^2``, of the weights and means on its two sides.

    Source: Otsu 1979, eq. 14.
    """
    counts, edges = np.histogram(values, bins=256, range=(0.0, 1.0))
    centres = (edges[:-1] + edges[1:]) / 2.0
    below, mass = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    above, rest = counts.sum() - below, (counts * centres).sum() - mass
    means = mass / np.maximum(below, 1) - rest / np.maximum(above, 1)
    return float(edges[1 + int(np.argmax(below * above * means**2))])


def _hsv(pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
    """Hue in degrees, saturation and value in [0, 1]."""
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"), np.float32)
    return hsv[..., 0] * (360.0 / 256.0), hsv[..., 1] / 255.0, hsv[..., 2] / 255.0


def _pen(hue: npt.NDArray[np.float32], saturation: npt.NDArray[np.float32]) -> Mask:
    """Mask of ink: green to blue above saturation 0.2, strong blue, strong red."""
    green_to_blue = (hue > 60.0) & (hue < 225.0) & (saturation > 0.2)
    blue = (hue >= 225.0) & (hue < 250.0) & (saturation > 0.6)
    red = ((hue > 345.0) | (hue < 20.0)) & (saturation > 0.7)
    return np.asarray(green_to_blue | blue | red)


def _rim(hue: npt.NDArray[np.float32], saturation: npt.NDArray[np.float32], value: npt.NDArray[np.float32]) -> Mask:
    """Mask of px that are ink only beside ink.

    Paler green to blue, pale or dark red, and near-black.
    """
    coloured = saturation > LOWEST_SATURATION / 2.0
    green_to_blue = coloured & (hue > 60.0) & (hue < 235.0)
    red = coloured & ((hue > 343.0) | (hue < 30.0))
    return np.asarray(green_to_blue | red | (value < 0.4))
