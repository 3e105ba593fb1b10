"""Outlines of an annotation file: their classes, and the areas inside their rings."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from milcore.errors import InputError

# a coordinate farther from the corner than any slide reaches
FARTHEST_PX = 1e9
NO_AREA = "without area, skipped"
CROSSES = "with crossing outlines, filled by the even-odd rule"

Position = tuple[float, float]


class Outline(NamedTuple):
    """One feature of an annotation file.

    Args:
        number: from 1, in the order of the file.
        class_name: None where it has none.
        area: in px of the file's own origin; empty where nothing is enclosed.
        note: what the user should know of it; None where it counts as it was drawn.
    """

    number: int
    class_name: str | None
    area: BaseGeometry
    note: str | None


def make_outline(
    number: int, class_name: str | None, polygons: Sequence[Sequence[Sequence[Position]]], place: str
) -> Outline:
    """Make an outline of polygons.

    Args:
        number: of the feature.
        class_name: of the feature.
        polygons: the rings of each, its shell first and then its holes; a ring that is open is closed. Where rings
            cross, the area is by the even-odd rule. None of them: the feature has no area.
        place: names the file in errors.

    Raises:
        InputError: a ring has fewer than three positions, or one that is no finite number.
    """
    shapes = [_area([_ring(ring, number, place) for ring in rings]) for rings in polygons]
    area = shapely.union_all([shape for shape, _ in shapes])
    if area.is_empty:
        return Outline(number, class_name, area, NO_AREA)
    return Outline(number, class_name, area, CROSSES if any(crosses for _, crosses in shapes) else None)


def _ring(positions: Sequence[Position], number: int, place: str) -> np.ndarray:
    ring = np.array(positions, np.float64).reshape(-1, 2)
    if len(ring) and not (np.abs(ring) <= FARTHEST_PX).all():  # NaN too
        raise InputError(
            f"{place}, feature {number}: expected coordinates in px, got one that is none; allowed: finite numbers up "
            f"to {FARTHEST_PX:.0e}"
        )
    is_closed = len(ring) > 1 and (ring[0] == ring[-1]).all()
    count = len(ring) - int(is_closed)
    if count < 3:
        raise InputError(
            f"{place}, feature {number}: expected a ring of at least 3 positions, got {count}; delete or redraw it"
        )
    return ring


def _area(rings: list[np.ndarray]) -> tuple[BaseGeometry, bool]:
    """The area inside rings, and True where they cross."""
    polygon = shapely.Polygon(rings[0], rings[1:])
    if polygon.is_valid:
        return polygon, False
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(polygon)))
    areas = parts[shapely.get_dimensions(parts) == 2]
    return shapely.union_all(areas), len(areas) > 0
