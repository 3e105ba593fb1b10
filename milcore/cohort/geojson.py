"""Annotations in GeoJSON, as QuPath and others write it.

One object, an array of objects, or objects one after another (a line each). QuPath's class of a feature stands in its
properties, ``classification``.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from milcore.cohort.outline import Outline, Position, make_outline
from milcore.errors import InputError

_BETWEEN_VALUES = re.compile(r"[ \t\r\n\x1e]*")
_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


def read_geojson(text: str, place: str) -> list[Outline]:
    """The features of a text in its order.

    Args:
        text: a FeatureCollection, Feature or geometry, an array of these, or several of them one after another.
        place: names the file in errors.

    Raises:
        ValueError: it is no JSON.
        InputError: a feature is none, or its rings are no outlines.
    """
    features = [feature for value in _values(text) for feature in _features(value, place)]
    return [_outline(number, *feature, place) for number, feature in enumerate(features, start=1)]


def _values(text: str) -> Iterator[Any]:
    """JSON values that follow one another."""
    decoder, position = json.JSONDecoder(), _next_value(text, 0)
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        yield value
        position = _next_value(text, position)


def _next_value(text: str, position: int) -> int:
    between = _BETWEEN_VALUES.match(text, position)
    return position if between is None else between.end()


def _features(value: Any, place: str) -> Iterator[tuple[str | None, Any]]:
    """Class and geometry of each feature; None where it has none."""
    if isinstance(value, list):
        for part in value:
            yield from _features(part, place)
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "FeatureCollection":
        yield from _features(_list(value.get("features"), place), place)
    elif kind == "Feature":
        yield _class_name(value.get("properties")), value.get("geometry")
    elif kind is not None:
        yield None, value
    else:
        raise InputError(
            f"{place}: expected GeoJSON, got other JSON; allowed: a FeatureCollection, a Feature or a geometry, or "
            "an array of them"
        )


def _class_name(properties: Any) -> str | None:
    """QuPath's class of a feature.

    Derived classes, such as ``Tumor: Positive``, may be a list of names.
    """
    value = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(value, dict):
        names = value.get("names")
        value = ": ".join(map(str, names)) if isinstance(names, list) and names else value.get("name")
    return value if isinstance(value, str) and value else None


def _outline(number: int, class_name: str | None, geometry: Any, place: str) -> Outline:
    polygons = [] if geometry is None else list(_polygons(geometry, f"{place}, feature {number}"))
    return make_outline(number, class_name, polygons, place)


def _polygons(geometry: Any, place: str) -> Iterator[list[list[Position]]]:
    """The rings of each polygon of a geometry; none of points and lines."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "GeometryCollection":
        for part in _list(geometry.get("geometries"), place):
            yield from _polygons(part, place)
    elif kind in {"Polygon", "MultiPolygon"}:
        coordinates = geometry.get("coordinates")
        for rings in [coordinates] if kind == "Polygon" else _filled_list(coordinates, place):
            yield [[_position(each, place) for each in _list(ring, place)] for ring in _filled_list(rings, place)]
    elif kind not in _WITHOUT_AREA:
        raise InputError(
            f"{place}: expected a geometry of GeoJSON, got another object; allowed: Polygon, MultiPolygon, "
            f"GeometryCollection, and without area {', '.join(_WITHOUT_AREA)}"
        )


def _position(value: Any, place: str) -> Position:
    """Position in px; further coordinates, such as z, are left out."""
    x, y, *_ = (*_list(value, place), None, None)
    if not (isinstance(x, int | float) and isinstance(y, int | float)):
        raise InputError(f"{place}: expected positions of two numbers, got others; allowed: x and y in px")
    try:
        return float(x), float(y)
    except OverflowError:  # an integer beyond all numbers
        return float("inf"), float("inf")


def _list(value: Any, place: str) -> list[Any]:
    if isinstance(value, list):
        return value
    raise InputError(f"{place}: expected a list of GeoJSON, got another value; allowed: features, rings and positions")


def _filled_list(value: Any, place: str) -> list[Any]:
    if isinstance(value, list) and not value:
        raise InputError(f"{place}: expected rings of positions, got none; delete the feature or redraw it")
    return _list(value, place)
