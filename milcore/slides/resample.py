"""Area resampling: every output px is the mean of the input area it covers.

Fractions of pixels are weighted. Pillow's BOX filter would not do: it counts whole pixels and so dislocates edges at
scales that are no integer. Where the scale is an integer and the box begins at a whole px, Pillow's ``reduce`` is that
mean. Where the image shrinks fourfold or more (thumbnails), ``reduce`` takes the first step for speed: an edge that
cuts one of its cells, at most half an output px wide, gets the cell's mean. Axis words: row, column, rgb.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import sparse


def area_resize(
    pixels: npt.NDArray[np.uint8], box: tuple[float, float, float, float], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Resample a box of an image to a size, by area.

    ``out[i, j]`` = mean of ``pixels`` over the j-th of ``width`` and i-th of ``height`` equal parts of the box.

    Args:
        pixels: shape (row, column, rgb).
        box: left, top, right, bottom in px of ``pixels``, inside it.
        size: width and height of the result in px.
    """
    scales = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
    if scales[0] == scales[1] and all(float(edge).is_integer() for edge in (scales[0], *box)):
        x0, y0, x1, y1 = (int(edge) for edge in box)
        inside = np.ascontiguousarray(pixels[y0:y1, x0:x1])
        return np.asarray(Image.fromarray(inside).reduce(int(scales[0])))
    whole = int(min(scales) / 2.0)
    if whole > 1:
        pixels = np.asarray(Image.fromarray(pixels).reduce(whole))
        box = (box[0] / whole, box[1] / whole, box[2] / whole, box[3] / whole)
    rows, columns = pixels.shape[:2]
    left, top, right, bottom = box
    short = _means(rows, top, bottom, size[1]) @ pixels.reshape(rows, -1).astype(np.float32)
    upright = np.ascontiguousarray(short.reshape(size[1], columns, 3).transpose(1, 0, 2)).reshape(columns, -1)
    small = _means(columns, left, right, size[0]) @ upright
    return np.ascontiguousarray(np.rint(small).astype(np.uint8).reshape(size[0], size[1], 3).transpose(1, 0, 2))


@lru_cache(maxsize=64)
def _means(length: int, begin: float, end: float, parts: int) -> sparse.csr_matrix:
    """Matrix (parts, length) of means over ``parts`` equal intervals of [begin, end)."""
    edges = np.linspace(begin, end, parts + 1)
    first = np.floor(edges[:-1]).astype(np.intp)
    taps = np.arange(int(np.ceil((end - begin) / parts)) + 1)
    index = first[:, None] + taps
    overlap = np.minimum(edges[1:, None], index + 1.0) - np.maximum(edges[:-1, None], index)
    weight = np.clip(overlap, 0.0, None) * (parts / (end - begin))
    part = np.broadcast_to(np.arange(parts)[:, None], index.shape)
    matrix = sparse.csr_matrix(
        (weight.ravel(), (part.ravel(), np.minimum(index, length - 1).ravel())), shape=(parts, length), dtype=np.float32
    )
    matrix.eliminate_zeros()
    return matrix
