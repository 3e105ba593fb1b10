"""Area resampling: every output pixel is the mean of the input area it covers, fractions of pixels weighted.

Pillow's BOX filter would not do: it counts whole pixels and so dislocates edges at scales that are no integer. Where
the image shrinks fourfold or more (thumbnails), Pillow's integer ``reduce`` takes the first step for speed, and an edge
that cuts one of its cells, at most half an output px wide, sees the cell's mean.
Axis words: row, column, rgb.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image


def area_resize(
    pixels: npt.NDArray[np.uint8], box: tuple[float, float, float, float], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """``out[i, j]`` = mean of ``pixels`` over the j-th of ``width`` and i-th of ``height`` equal parts of the box.

    Args:
        pixels: shape (row, column, rgb).
        box: left, top, right, bottom in px of ``pixels``, inside it.
        size: width and height of the result in px.
    """
    whole = int(min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]) / 2.0)
    if whole > 1:
        pixels = np.asarray(Image.fromarray(pixels).reduce(whole))
        box = (box[0] / whole, box[1] / whole, box[2] / whole, box[3] / whole)
    left, top, right, bottom = box
    short = _average(pixels, top, bottom, size[1], axis=0)
    return np.asarray(np.rint(_average(short, left, right, size[0], axis=1)), np.uint8)


def _average(
    pixels: npt.NDArray[np.generic], begin: float, end: float, parts: int, axis: int
) -> npt.NDArray[np.float32]:
    """Means over ``parts`` equal intervals of [begin, end) along an axis."""
    edges = np.linspace(begin, end, parts + 1)
    first = np.floor(edges[:-1]).astype(np.intp)
    shape = [1] * pixels.ndim
    shape[axis] = parts
    total: npt.NDArray[np.float32] | None = None
    for tap in range(math.ceil((end - begin) / parts) + 1):
        index = first + tap
        overlap = np.minimum(edges[1:], index + 1.0) - np.maximum(edges[:-1], index)
        weight = np.clip(overlap, 0.0, None) * (parts / (end - begin))
        if not weight.any():
            continue
        taken = pixels.take(np.minimum(index, pixels.shape[axis] - 1), axis=axis)
        part = taken * weight.astype(np.float32).reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    return np.asarray(total)
