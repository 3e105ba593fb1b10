"""Grid of imported instances: the patch edge and the slide's size in level-0 px.

The step of a grid is its commonest, not its smallest. CLAM begins a grid at every contour of tissue, and between two
such grids lie steps of any length.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from milcore.config import MAX_SLIDE_EDGE_PX
from milcore.errors import SlideError

Coords = npt.NDArray[np.int32]


class PatchGrid(NamedTuple):
    """Grid of a slide's patches.

    Args:
        patch_size_level0: patch edge in level-0 px.
        origin: of the edge: option, source or grid step.
        size_level0: (width, height) of the slide in level-0 px.
    """

    patch_size_level0: float
    origin: str
    size_level0: tuple[int, int]


def corners_problem(corners: npt.NDArray[Any]) -> str | None:
    """Reason why corners are no places of a slide; None where they are.

    Stored as int32, they would wrap.
    """
    if not np.isfinite(corners).all():
        return "coords hold NaN or infinity"
    farthest = float(np.abs(corners).max(initial=0))
    if farthest > MAX_SLIDE_EDGE_PX:
        return f"coords reach {farthest:,.0f} px; allowed: {MAX_SLIDE_EDGE_PX:,}, level-0 px"
    return None


def grid_step(coords: npt.NDArray[Any]) -> int | None:
    """Commonest step between neighbours in a row or column, px.

    The smallest of equally common ones; None where no two share a row or column.
    """
    steps = np.concatenate([_steps(coords[:, 0], coords[:, 1]), _steps(coords[:, 1], coords[:, 0])])
    if not len(steps):
        return None
    lengths, counts = np.unique(steps, return_counts=True)
    return int(lengths[counts.argmax()])


def _steps(along: npt.NDArray[Any], across: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Positive differences along one axis between neighbours that share the other."""
    order = np.lexsort((along, across))
    step = np.diff(along[order])
    steps: npt.NDArray[Any] = step[(np.diff(across[order]) == 0) & (step > 0)]
    return steps


def patch_grid(
    coords: Coords, option: float | None, source: float | None, size_level0: tuple[int, int] | None
) -> PatchGrid:
    """Grid of a slide's patches.

    Its edge is that of the option, else of the source, else the step of the coords.

    Args:
        coords: corners (x, y), level-0 px.
        option: patch edge in level-0 px that the user gave.
        source: patch edge in level-0 px in the source.
        size_level0: (width, height) of the slide in level-0 px; None where the source has none.

    Raises:
        SlideError: the patch edge is unknown.
    """
    step = grid_step(coords) if option is None and source is None else None
    for edge, origin in ((option, "option"), (source, "source"), (step, "grid step")):
        if edge is not None:
            return PatchGrid(float(edge), origin, size_level0 or _extent(coords, edge))
    raise SlideError("no patch size: the source tells none and no two coords share a row; give --patch-size-level0")


def _extent(coords: Coords, edge: float) -> tuple[int, int]:
    """(width, height) of the smallest area from (0, 0) with every patch, level-0 px."""
    right, bottom = coords.max(axis=0) + edge
    return max(1, math.ceil(right)), max(1, math.ceil(bottom))
