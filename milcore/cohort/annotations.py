"""Annotated regions of slides in GeoJSON, and instance labels from their overlap.

Coordinates are level-0 px. They serve localisation metrics only: nothing is trained on them.
"""

import json

import numpy as np
import shapely
from jaxtyping import Int
from shapely.geometry.base import BaseGeometry

from milcore.config import MAX_ANNOTATION_MB
from milcore.errors import InputError
from milcore.runtime import storage
from milcore.runtime.allow_list import check_uri

POSITIVE_OVERLAP = 0.25


def load_annotation(uri: str, slide_id: str) -> BaseGeometry:
    """Read the annotated region of a slide, level-0 px.

    Raises:
        InputError: there is no such object, or it is not GeoJSON.
    """
    check_uri(uri, f"annotation of slide {slide_id}")
    try:
        size_mb = storage.stat(uri).size / 1e6
        if size_mb > MAX_ANNOTATION_MB:
            raise InputError(
                f"annotation of slide {slide_id}: expected regions, got {size_mb:,.0f} MB at {uri}; allowed: "
                f"{MAX_ANNOTATION_MB} MB; simplify its outlines"
            )
        text = storage.read_bytes(uri)
    except FileNotFoundError:
        raise InputError(
            f"annotation of slide {slide_id}: expected a file, got nothing at {uri}; correct the manifest's annotation"
        ) from None
    return read_annotation(text, slide_id)


def read_annotation(text: bytes, slide_id: str) -> BaseGeometry:
    """Parse a GeoJSON object into the union of its areas, level-0 px.

    Args:
        text: a FeatureCollection, Feature, GeometryCollection or geometry; points and lines have no area.
        slide_id: named in errors.

    Raises:
        InputError: the text is not GeoJSON.
    """
    try:
        shapes = [shapely.geometry.shape(part) for part in _geometries(json.loads(text))]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, shapely.errors.ShapelyError) as error:
        # not the error's text, which may quote the file
        raise InputError(
            f"annotation of slide {slide_id}: expected GeoJSON, got none ({type(error).__name__}); allowed: polygons "
            "in level-0 px"
        ) from None
    areas = [shapely.make_valid(shape) for shape in shapes if shape.area > 0]
    return shapely.union_all(areas)


def _geometries(value: dict[str, object]) -> list[dict[str, object]]:
    kind = value["type"]
    if kind == "FeatureCollection":
        return [part for feature in _members(value, "features") for part in _geometries(feature)]
    if kind == "GeometryCollection":
        return [part for member in _members(value, "geometries") for part in _geometries(member)]
    if kind == "Feature":
        geometry = value["geometry"]
        return _geometries(geometry) if isinstance(geometry, dict) else []
    return [value]


def _members(value: dict[str, object], name: str) -> list[dict[str, object]]:
    members = value[name]
    if not isinstance(members, list):
        raise TypeError(f"{name}: expected a list, got a {type(members).__name__}")
    return members


def instance_labels(
    coords: Int[np.ndarray, "instance 2"], patch_size_level0: float, region: BaseGeometry
) -> Int[np.ndarray, " instance"]:
    """Label of each patch from its overlap with a region.

    1 where at least 25 % of the patch lies in the region, 0 where nothing does, -1 (left out) between.

    Args:
        coords: upper left corners (x, y), level-0 px.
        patch_size_level0: patch edge, level-0 px.
        region: annotated area, level-0 px.
    """
    x, y = coords[:, 0].astype(np.float64), coords[:, 1].astype(np.float64)
    boxes = shapely.box(x, y, x + patch_size_level0, y + patch_size_level0)
    share = np.zeros(len(coords))
    shapely.prepare(region)
    near = shapely.intersects(region, boxes)
    share[near] = shapely.area(shapely.intersection(boxes[near], region)) / patch_size_level0**2
    return np.where(share >= POSITIVE_OVERLAP, 1, np.where(share > 0, -1, 0)).astype(np.int64)
