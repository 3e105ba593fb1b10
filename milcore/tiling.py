"""From a slide's size, scale and tissue mask to the places of its patches. Pure, no I/O.

Tiles lie edge to edge on a grid that begins at (0, 0); only tiles wholly inside the slide count, so every pixel of a
patch is real. Axis words: n (tile).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from milcore.config import IngestConfig

# scales this close (as a share) count as equal: resampling would blur and move nothing
SAME_SCALE = 0.005


@dataclass(frozen=True)
class TilePlan:
    """Tiles to read, row by row.

    Args:
        coords: corner (x, y) of each in level-0 px, rounded down, shape (n, 2).
        tissue: share of each tile's area that is tissue, shape (n,).
        size_level0: tile edge in level-0 px.
        grid: tiles of the whole grid, with or without tissue.
    """

    coords: npt.NDArray[np.int32]
    tissue: npt.NDArray[np.float32]
    size_level0: float
    grid: int


def tile_size_level0(mpp: float, config: IngestConfig) -> float:
    """``patch_size * target / mpp`` in level-0 px; ``patch_size`` itself where mpp is within 0.5 % of the target."""
    if abs(mpp / config.mpp - 1.0) <= SAME_SCALE:
        return float(config.patch_size)
    return config.patch_size * config.mpp / mpp


def plan_tiles(size: tuple[int, int], mpp: float, mask: npt.NDArray[np.bool_], config: IngestConfig) -> TilePlan:
    """The grid's tiles of which at least ``min_tissue`` is tissue.

    Args:
        size: (width, height) of level 0 in px.
        mpp: um/px of level 0.
        mask: tissue, shape (row, column), covering the whole slide at any scale.
        config: target scale, patch size and smallest share of tissue.
    """
    step = tile_size_level0(mpp, config)
    columns, rows = (int(edge / step + 1e-9) for edge in size)
    shares = _shares(mask, step * columns / size[0], step * rows / size[1], columns, rows)
    row, column = np.nonzero(shares >= config.min_tissue)
    corners = np.floor(np.stack([column, row], axis=1) * step + 1e-9)
    return TilePlan(corners.astype(np.int32), shares[row, column].astype(np.float32), step, rows * columns)


def _shares(
    mask: npt.NDArray[np.bool_], width: float, height: float, columns: int, rows: int
) -> npt.NDArray[np.float64]:
    """Tissue share of each tile (rows, columns) of a grid over the upper left ``width`` x ``height`` of the mask.

    Exact for mask pixels cut by a tile's edge: the area sum ``S(x, y)`` of a piecewise constant mask is bilinear
    between its corners, and a tile's sum is ``S(x1, y1) - S(x0, y1) - S(x1, y0) + S(x0, y0)``.
    """
    if not rows * columns:
        return np.zeros((rows, columns))
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(0, dtype=np.int64).cumsum(1)
    y = np.linspace(0.0, height * mask.shape[0], rows + 1)
    x = np.linspace(0.0, width * mask.shape[1], columns + 1)
    corners = _between(_between(sums, y).T, x).T
    tiles = np.diff(np.diff(corners, axis=0), axis=1)
    area = (y[1] - y[0]) * (x[1] - x[0])
    return np.asarray(np.clip(np.round(tiles / area, 9), 0.0, 1.0))


def _between(values: npt.NDArray[np.float64], at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows of ``values`` at fractional places, linear between neighbours."""
    low = np.minimum(np.floor(at).astype(np.intp), len(values) - 2)
    part = (at - low)[:, None]
    return np.asarray(values[low] * (1.0 - part) + values[low + 1] * part)
