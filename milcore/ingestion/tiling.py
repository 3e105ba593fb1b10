"""Tile plan of a slide: the tiles of its grid with tissue.

Pure, no I/O.

Tiles lie on a grid that begins at (0, 0): edge to edge, unless another stride is asked for. Only tiles inside the slide
count, so every px of a patch was scanned; with border ``pad`` the grid covers the slide to its last px, and px beyond
it are white. Axis words: n (tile).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from milcore.config import IngestConfig
from milcore.slides.mpp import SAME_SCALE


@dataclass(frozen=True)
class TilePlan:
    """Tiles to read, row by row.

    Args:
        coords: corner (x, y) of each in level-0 px, rounded down, shape (n, 2).
        tissue: tissue fraction of each tile's area, shape (n,).
        patch_size_level0: tile edge in level-0 px.
        grid: tiles of the whole grid, with or without tissue.
    """

    coords: npt.NDArray[np.int32]
    tissue: npt.NDArray[np.float32]
    patch_size_level0: float
    grid: int


def tile_size_level0(mpp: float, config: IngestConfig) -> float:
    """Tile edge in level-0 px: ``patch_size * target / mpp``.

    ``patch_size`` itself where mpp is within 0.5 % of the target.
    """
    if abs(mpp / config.mpp - 1.0) <= SAME_SCALE:
        return float(config.patch_size)
    return config.patch_size * config.mpp / mpp


def plan_tiles(size: tuple[int, int], mpp: float, mask: npt.NDArray[np.bool_], config: IngestConfig) -> TilePlan:
    """Plan the tiles of the grid of which at least ``min_tissue`` is tissue.

    Args:
        size: (width, height) of level 0 in px.
        mpp: um/px of level 0.
        mask: tissue, shape (row, column), covering the whole slide at any scale.
        config: target scale, patch size, stride, border and smallest tissue fraction.
    """
    extent = tile_size_level0(mpp, config)
    step = extent * (config.stride or config.patch_size) / config.patch_size
    columns, rows = grid_size(size, mpp, config)
    fractions = _tissue_fractions(
        mask, size, extent, step * np.arange(columns, dtype=np.float64), step * np.arange(rows, dtype=np.float64)
    )
    row, column = np.nonzero(fractions >= config.min_tissue)
    corners = np.floor(np.stack([column, row], axis=1) * step + 1e-9)
    return TilePlan(corners.astype(np.int32), fractions[row, column].astype(np.float32), extent, rows * columns)


def grid_size(size: tuple[int, int], mpp: float, config: IngestConfig) -> tuple[int, int]:
    """Columns and rows of the grid.

    Args:
        size: (width, height) of level 0 in px.
        mpp: um/px of level 0.
        config: target scale, patch size, stride and border.
    """
    extent = tile_size_level0(mpp, config)
    step = extent * (config.stride or config.patch_size) / config.patch_size
    width, height = (_tiles(edge, extent, step, pad=config.border == "pad") for edge in size)
    return width, height


def _tiles(edge: int, extent: float, step: float, *, pad: bool) -> int:
    """Number of tiles inside an edge, or as many as cover it."""
    steps = (edge - extent) / step
    if pad:
        return max(0, math.ceil(steps - 1e-9)) + 1
    return math.floor(steps + 1e-9) + 1 if steps > -1e-9 else 0


def _tissue_fractions(
    mask: npt.NDArray[np.bool_],
    size: tuple[int, int],
    extent: float,
    left: npt.NDArray[np.float64],
    top: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Tissue fraction of each tile, shape (rows, columns).

    Exact for mask px cut by a tile's edge: the area sum ``S(x, y)`` of a piecewise constant mask is bilinear between
    its corners, and a tile's sum is ``S(x1, y1) - S(x0, y1) - S(x1, y0) + S(x0, y0)``. Px beyond the slide count as no
    tissue.

    Args:
        mask: tissue, shape (row, column).
        size: (width, height) of level 0 in px.
        extent: tile edge in level-0 px.
        left: left edges of the columns of tiles in level-0 px.
        top: upper edges of the rows of tiles in level-0 px.
    """
    scale_x, scale_y = mask.shape[1] / size[0], mask.shape[0] / size[1]
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(0, dtype=np.int64).cumsum(1)
    down = _between(sums, np.minimum(top + extent, size[1]) * scale_y) - _between(sums, top * scale_y)
    x0, x1 = left * scale_x, np.minimum(left + extent, size[0]) * scale_x
    tiles = (_between(down.T, x1) - _between(down.T, x0)).T
    return np.asarray(np.clip(np.round(tiles / (extent * scale_x * extent * scale_y), 9), 0.0, 1.0))


def _between(values: npt.NDArray[np.float64], at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows of ``values`` at fractional indices, interpolated linearly."""
    low = np.minimum(np.floor(at).astype(np.intp), len(values) - 2)
    weight = (at - low)[:, None]
    return np.asarray(values[low] * (1.0 - weight) + values[low + 1] * weight)
