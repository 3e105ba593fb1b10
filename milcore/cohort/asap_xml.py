"""Annotations in the XML of ASAP, as CAMELYON has them.

Coordinates are px of level 0 from the slide's own corner. The class of an annotation is the group it is part of.
"""

import math
import xml.etree.ElementTree as ET

from milcore.cohort.outline import Outline, Position, make_outline
from milcore.errors import InputError
from milcore.slides.mpp import parse_number

_ROOT = "ASAP_Annotations"
_WITH_AREA = ("Polygon", "Spline", "Rectangle")
# what ASAP writes for an annotation without a group
_NO_GROUP = ("None", "")


def read_asap_xml(text: str, place: str) -> list[Outline]:
    """The annotations of a text in its order.

    Of a spline it is the polygon through its points.

    Args:
        text: of the file.
        place: names the file in errors.

    Raises:
        InputError: it is no XML of ASAP, or an annotation is no outline.
    """
    if "<!DOCTYPE" in text:  # entities, which may grow without bound
        raise InputError(f"{place}: expected ASAP's XML, got one with a document type; allowed: as ASAP saves it")
    try:
        root = ET.fromstring(text)  # noqa: S314 - without a document type there are no entities
    except ET.ParseError as error:
        raise InputError(
            f"{place}: expected ASAP's XML, got a text that is none in line {error.position[0]}; allowed: as ASAP "
            "saves it, or GeoJSON"
        ) from None
    if root.tag != _ROOT:
        raise InputError(
            f"{place}: expected ASAP's XML, got another; allowed: {_ROOT} at its root, or GeoJSON; export the "
            "annotations as one of these"
        )
    return [_outline(number, element, place) for number, element in enumerate(root.iter("Annotation"), start=1)]


def _outline(number: int, element: ET.Element, place: str) -> Outline:
    group = element.get("PartOfGroup", "")
    polygons = [[_ring(element)]] if element.get("Type", "Polygon") in _WITH_AREA else []
    return make_outline(number, None if group in _NO_GROUP else group, polygons, place)


def _ring(element: ET.Element) -> list[Position]:
    """The positions of an annotation, in their order."""
    points = sorted(element.iter("Coordinate"), key=lambda point: _number(point.get("Order")))
    return [(_number(point.get("X")), _number(point.get("Y"))) for point in points]


def _number(text: str | None) -> float:
    """Number of an attribute; NaN where it is none."""
    number = parse_number(text)
    return math.nan if number is None else number
