"""Attention of one slide as a table and as a picture.

Pictures are aligned to level 0. No I/O. Attention is the weight of each patch in the pooling, as a share of one slide's
whole. It is not a probability of disease: weights of a negative slide sum to 1 just the same, and weights of two slides
cannot be compared.

Boxes are (x, y, x + size, y + size) in level-0 px; axis words: instance, row, column, channel.
"""

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.stats import rankdata

FAINTEST = 30
# The published viridis ramp at nine equal steps: legible on pink tissue and to the colour-blind.
RAMP = np.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ],
    dtype=np.float64,
)


def attention_table(
    coords: Int[np.ndarray, "instance 2"] | None,
    patch_size_level0: float | None,
    weight: Float[np.ndarray, " instance"],
    tissue: Float[np.ndarray, " instance"] | None,
    extra_columns: Mapping[str, Float[np.ndarray, " instance"]] | None = None,
) -> pa.Table:
    """One row per patch, in the store's order.

    Columns x, y, size (level-0 px), weight, percentile and tissue; those unknown are left out.

    Args:
        coords: upper left corners (x, y), level-0 px.
        patch_size_level0: patch edge, level-0 px; None like coords.
        weight: shares of the slide's attention, summing to 1.
        tissue: share of each tile that is tissue, 0 to 1.
        extra_columns: by name, such as ``score``.
    """
    columns = {}
    if coords is not None:
        columns["x"] = pa.array(coords[:, 0], pa.int32())
        columns["y"] = pa.array(coords[:, 1], pa.int32())
        columns["size"] = pa.array(np.full(len(coords), patch_size_level0), pa.float64())
    columns["weight"] = pa.array(weight, pa.float64())
    columns["percentile"] = pa.array(percentile(weight), pa.float64())
    if tissue is not None:
        columns["tissue"] = pa.array(tissue, pa.float32())
    columns |= {name: pa.array(values, pa.float64()) for name, values in (extra_columns or {}).items()}
    return pa.table(columns)


def percentile(weight: Float[np.ndarray, " instance"]) -> Float[np.ndarray, " instance"]:
    """Percentile rank of each weight, 0 to 100.

    ``100 (rank - 1/2) / n`` with equal weights sharing their mean rank: 50 everywhere when attention is flat.
    """
    ranks: np.ndarray = 100.0 * (rankdata(weight) - 0.5) / max(len(weight), 1)
    return ranks


def half_mass(weight: Float[np.ndarray, " instance"]) -> int:
    """Smallest number of patches that hold half of the attention.

    Near n / 2 when it is flat, 1 when one patch decides.
    """
    total = np.cumsum(np.sort(weight)[::-1])
    return int(np.searchsorted(total, 0.5 * total[-1] - 1e-12)) + 1


def heat_layer(
    shape: tuple[int, int],
    size_level0: tuple[int, int],
    table: pa.Table,
) -> UInt8[np.ndarray, "row column 4"]:
    """Attention as a transparent picture at thumbnail scale.

    Colour and opacity follow weight / largest weight.

    Args:
        shape: (rows, columns) of the thumbnail, px.
        size_level0: (width, height) of the slide, level-0 px.
        table: of ``attention_table``.
    """
    weight = table["weight"].to_numpy()
    share = weight / max(weight.max(initial=0.0), 1e-300)
    layer = np.zeros((*shape, 4), np.uint8)
    paint = np.column_stack([colour_of(weight), FAINTEST + (255 - FAINTEST) * share]).round().astype(np.uint8)
    left, top, right, bottom = thumbnail_boxes(shape, size_level0, table)
    for k in np.argsort(share, kind="stable"):
        layer[top[k] : bottom[k], left[k] : right[k]] = paint[k]
    return layer


def colour_of(weight: Float[np.ndarray, " instance"]) -> Float[np.ndarray, "instance 3"]:
    """Viridis colour of each weight as a share of the largest.

    Red, green and blue, 0 to 255.
    """
    place = weight / max(weight.max(initial=0.0), 1e-300) * (len(RAMP) - 1)
    colour: np.ndarray = np.stack([np.interp(place, np.arange(len(RAMP)), channel) for channel in RAMP.T], axis=1)
    return colour


def thumbnail_boxes(
    shape: tuple[int, int], size_level0: tuple[int, int], table: pa.Table
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Left, top, right, bottom of each patch in thumbnail px.

    Each edge is rounded; no box is thinner than one pixel. A patch may begin outside the slide (one centred at
    the slide's edge): left and top are cut to the picture.
    """
    scale_x, scale_y = shape[1] / size_level0[0], shape[0] / size_level0[1]
    x, y, size = table["x"].to_numpy(), table["y"].to_numpy(), table["size"].to_numpy()
    left, top = np.rint(x * scale_x).astype(int), np.rint(y * scale_y).astype(int)
    right, bottom = np.rint((x + size) * scale_x).astype(int), np.rint((y + size) * scale_y).astype(int)
    right, bottom = np.maximum(right, left + 1), np.maximum(bottom, top + 1)
    return np.maximum(left, 0), np.maximum(top, 0), np.maximum(right, 0), np.maximum(bottom, 0)


def overlay(
    thumbnail: UInt8[np.ndarray, "row column 3"], layer: UInt8[np.ndarray, "row column 4"]
) -> UInt8[np.ndarray, "row column 3"]:
    """Blend an attention layer over a thumbnail.

    ``(1 - a) thumbnail + a layer`` with a = 0.7 of the layer's own opacity.
    """
    blend = np.empty_like(thumbnail)
    for row, (pixels, colours) in enumerate(zip(thumbnail, layer, strict=True)):  # in float64 all rows are 16 times it
        opacity = 0.7 * colours[:, 3:].astype(np.float64) / 255
        blend[row] = np.rint((1 - opacity) * pixels + opacity * colours[:, :3])
    return blend


def png(pixels: UInt8[np.ndarray, "row column channel"]) -> bytes:
    """The picture as a PNG file."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", optimize=True)
    return sink.getvalue()
