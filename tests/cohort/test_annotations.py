"""Annotations in every form of GeoJSON, and instance labels from areas worked by hand."""

import json

import numpy as np
import pytest
import shapely

from milcore.cohort.annotations import instance_labels, load_annotation, read_annotation
from milcore.errors import InputError

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda g: g,
        lambda g: {"type": "Feature", "geometry": g, "properties": {}},
        lambda g: {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": g, "properties": None}]},
        lambda g: {"type": "GeometryCollection", "geometries": [g, {"type": "Point", "coordinates": [5, 5]}]},
        lambda g: {"type": "MultiPolygon", "coordinates": [g["coordinates"], g["coordinates"]]},
    ],
)
def test_every_form_of_geojson_gives_the_same_area(wrap):
    assert read_annotation(json.dumps(wrap(SQUARE)).encode(), "s").area == 10_000


def test_an_annotation_without_areas_is_empty():
    assert read_annotation(b'{"type": "FeatureCollection", "features": []}', "s").is_empty
    assert read_annotation(b'{"type": "Feature", "geometry": null, "properties": {}}', "s").is_empty


@pytest.mark.parametrize(
    "text", [b"<xml>", b"[1]", b"{}", b'{"type": "Polygon"}', b'{"type": "Oval", "coordinates": []}']
)
def test_a_broken_annotation_names_its_slide(text):
    with pytest.raises(InputError, match="annotation of slide tumour-7: expected GeoJSON"):
        read_annotation(text, "tumour-7")


def test_instance_labels_follow_the_share_of_overlap():
    """Patches of 100 px against a region [0, 100]^2: shares 1, 0.25, 0.24, 0 (touching edge), 0."""
    coords = np.array([(0, 0), (75, 0), (76, 0), (100, 0), (500, 500)])
    assert instance_labels(coords, 100.0, shapely.box(0, 0, 100, 100)).tolist() == [1, 1, -1, 0, 0]


def test_a_missing_annotation_names_slide_and_place(tmp_path):
    with pytest.raises(InputError, match=r"slide tumour-7: expected a file, got nothing at .*none\.geojson"):
        load_annotation(str(tmp_path / "none.geojson"), "tumour-7")
    (tmp_path / "a.geojson").write_text(json.dumps(SQUARE))
    assert load_annotation(str(tmp_path / "a.geojson"), "tumour-7").area == 10_000
