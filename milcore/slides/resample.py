"""Area resampling: every output pixel is the mean of the input area it covers, fractions of pixels weighted.

Pure numpy, because Pillow's BOX filter counts whole pixels and so dislocates edges at scales that are no integer.
Axis words: row, column, rgb.
"""

import math

import numpy as np
import numpy.typing as npt


def area_resize(
    pixels: npt.NDArray[np.uint8], box: tuple[float, float, float, float], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """``out[i, j]`` = mean of ``pixels`` over the j-th of ``width`` and i-th of ``height`` equal parts of the box.

    Args:
        pixels: shape (row, column, rgb).
        box: left, top, right, bottom in px of ``pixels``, inside it.
        size: width and height of the result in px.
    """
    left, top, right, bottom = box
    narrow = _average(pixels.swapaxes(0, 1), left, right, size[0]).swapaxes(0, 1)
    return np.asarray(np.rint(_average(narrow, top, bottom, size[1])), np.uint8)


def _average(pixels: npt.NDArray[np.generic], begin: float, end: float, parts: int) -> npt.NDArray[np.float32]:
    """Means over ``parts`` equal intervals of [begin, end) along the first axis."""
    edges = np.linspace(begin, end, parts + 1)
    first = np.floor(edges[:-1]).astype(np.intp)
    taps = math.ceil((end - begin) / parts) + 1
    total = np.zeros((parts, *pixels.shape[1:]), np.float32)
    for tap in range(taps):
        index = first + tap
        overlap = np.minimum(edges[1:], index + 1.0) - np.maximum(edges[:-1], index)
        weight = (np.clip(overlap, 0.0, None) * parts / (end - begin)).astype(np.float32)
        if weight.any():
            rows = pixels[np.minimum(index, len(pixels) - 1)]
            total += rows * weight.reshape(-1, *([1] * (pixels.ndim - 1)))
    return total
