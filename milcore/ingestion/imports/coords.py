"""Where imported instances lie: corners in level-0 px, the edge of a patch, the extent of the slide.

The surprise: a grid's step is its commonest, not its smallest. CLAM begins a grid at every contour of tissue, and
between two such grids lie steps of any length.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from milcore.errors import SlideError

Coords = npt.NDArray[np.int32]


def grid_step(coords: npt.NDArray[Any]) -> int | None:
    """The commonest step between neighbours in one row or one column, px; of equals the smallest; None without any."""
    steps = np.concatenate([_steps(coords[:, 0], coords[:, 1]), _steps(coords[:, 1], coords[:, 0])])
    if not len(steps):
        return None
    lengths, counts = np.unique(steps, return_counts=True)
    return int(lengths[counts.argmax()])


def _steps(along: npt.NDArray[Any], across: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Positive differences of consecutive places that share the other axis."""
    order = np.lexsort((along, across))
    step = np.diff(along[order])
    found: npt.NDArray[Any] = step[(np.diff(across[order]) == 0) & (step > 0)]
    return found


def place(coords: Coords, asked: float | None, told: float | None, extent: tuple[int, int] | None) -> dict[str, Any]:
    """What a slide's attributes say of its places: ``patch_size_level0``, where that is from, ``size_level0``.

    Args:
        coords: corners (x, y), level-0 px.
        asked: patch edge in level-0 px that the user gave.
        told: patch edge in level-0 px that the source tells.
        extent: (width, height) of the slide in level-0 px where the source tells it.

    Raises:
        SlideError: nothing tells the patch edge.
    """
    step = grid_step(coords) if asked is None and told is None else None
    for edge, origin in ((asked, "option"), (told, "source"), (step, "grid step")):
        if edge is not None:
            size = extent or _extent(coords, edge)
            return {"patch_size_level0": float(edge), "patch_size_level0_from": origin, "size_level0": list(size)}
    raise SlideError("no patch size: the source tells none and no two coords share a row; give --patch-size-level0")


def _extent(coords: Coords, edge: float) -> tuple[int, int]:
    """(width, height) that holds every patch, level-0 px."""
    right, bottom = coords.max(axis=0) + edge
    return max(1, math.ceil(right)), max(1, math.ceil(bottom))
