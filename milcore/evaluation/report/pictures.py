"""Pictures for one HTML file: shrunk JPEG, data URIs, outlines and scale bar."""

import io
import math

import numpy as np
import shapely
from jaxtyping import UInt8
from PIL import Image
from shapely.geometry.base import BaseGeometry


def shrink(pixels: UInt8[np.ndarray, "row column 3"], edge: int) -> UInt8[np.ndarray, "row column 3"]:
    """The picture averaged down to a longer edge of at most ``edge`` px.

    It is never enlarged.
    """
    rows, columns = pixels.shape[:2]
    factor = min(1.0, edge / max(rows, columns))
    size = max(round(columns * factor), 1), max(round(rows * factor), 1)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX, reducing_gap=None))


def jpeg(pixels: UInt8[np.ndarray, "row column 3"], quality: int) -> bytes:
    """The picture as a JPEG file."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=quality, optimize=True)
    return sink.getvalue()


def rings(region: BaseGeometry, tolerance: float) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Boundaries of all areas, simplified.

    Args:
        region: level-0 px.
        tolerance: largest distance a boundary may move, level-0 px.
    """
    simple = shapely.simplify(region, tolerance)
    areas = [part for part in shapely.get_parts(simple) if isinstance(part, shapely.Polygon) and not part.is_empty]
    lines = [ring for area in areas for ring in (area.exterior, *area.interiors)]
    return tuple(tuple((round(x, 1), round(y, 1)) for x, y in line.coords) for line in lines)


def scale_bar(width: int, mpp: float) -> tuple[float, str]:
    """Length (level-0 px) and text of a scale bar.

    1, 2 or 5 times a power of ten in um, at most a quarter of the slide's width.

    Args:
        width: of the slide, level-0 px.
        mpp: um/px at level 0.
    """
    most = width * mpp / 4
    power = 10.0 ** math.floor(math.log10(most))
    length = max(k * power for k in (1, 2, 5) if k * power <= most)
    return length / mpp, f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
