"""Annotations in every form that people have, with areas worked by hand, and instance labels from their overlap."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapely

from milcore.cohort import annotations
from milcore.cohort.annotations import instance_labels, load_annotation, read_annotation, unmatched_classes
from milcore.config import AnnotationConfig
from milcore.errors import InputError

CASES = Path(__file__).resolve().parents[1] / "cases"
PLACE = "annotation of slide tumour-7, a.geojson"
SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]]}
# two triangles: over the left edge, 300 high and 1200 / 7 wide, and over the right edge, 400 high and 1600 / 7 wide
BOW_TIE = (300 * 1200 / 7 + 400 * 1600 / 7) / 2
# file -> area in px, notes, why it is right
AREAS = {
    "geo/poly.json": (160_000, (), "a bare geometry"),
    "geo/cw.json": (160_000, (), "the direction of a ring has no meaning here"),
    "geo/open_ring.json": (160_000, (), "an open ring is closed"),
    "geo/z.json": (160_000, (), "z is left out"),
    "geo/bom.json": (160_000, (), "a byte order mark is no data"),
    "geo/feature.json": (160_000, (), "one Feature"),
    "geo/fc.json": (160_000, (), "a FeatureCollection"),
    "geo/list_features.json": (170_000, (), "QuPath's array: the square and one of 100 px"),
    "geo/list_fc.json": (160_000, (), "an array of a FeatureCollection"),
    "geo/nd.json": (160_000, (), "a feature a line, here twice the same square"),
    "geo/gz.geojson.gz": (160_000, (), "compressed"),
    "geo/hole.json": (150_000, (), "a hole of 100 px square is outside"),
    "geo/multi.json": (150_100, (), "a square of 10 px, and the square with its hole"),
    "geo/ellipse_qupath.json": (100, (), "the ring as given"),
    "geo/bowtie_asym.json": (BOW_TIE, ("crossing outlines, filled by the even-odd rule",), "both triangles"),
    "geo/latin.json": (160_000, ("no UTF-8 and was read as Latin-1",), "the square is in ASCII"),
    "geo/nullgeom.json": (160_000, ("1 of 2 features without area, skipped: feature 1",), "the other counts"),
    "geo/empty_fc.json": (0, ("holds no area",), "no annotation"),
    "geo/point.json": (0, ("1 of 1 features without area, skipped: feature 1", "holds no area"), "a point"),
    "geo/line.json": (0, ("1 of 1 features without area, skipped: feature 1", "holds no area"), "a line"),
    "09/list_features.json": (170_000, (), "the sum of its polygons: the square and one of 100 px"),
    "09/qupath-cells.json": (442.588, (), "two cells of 103.602 and 153.785 px, two nuclei of 109.858 and 75.343"),
}
# file -> error, why it is right
ERRORS = {
    "geo/empty.json": ("expected outlines, got an empty file", "an export that failed is no slide without lesions"),
    "geo/nan.json": ("feature 1: expected coordinates in px, got one that is none", "where it lies is not known"),
    "geo/twopts.json": ("feature 1: expected a ring of at least 3 positions, got 2", "a polygon has three corners"),
    "geo/emptypoly.json": ("feature 1: expected rings of positions, got none", "an outline was meant, and is lost"),
}


def features(*named: tuple[object, int]) -> bytes:
    """Squares of 100 px side by side, each with QuPath's properties and the number of its place."""
    return json.dumps(
        [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [square(100 * place)]},
                "properties": {"objectType": "annotation", **({} if name is None else {"classification": name})},
            }
            for name, place in named
        ]
    ).encode()


def square(left: int) -> list[list[list[int]]]:
    return [[left, 0], [left + 100, 0], [left + 100, 100], [left, 100], [left, 0]]


def asap(annotations: str) -> bytes:
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{annotations}</Annotations><AnnotationGroups>'
        '<Group Name="Tumor" PartOfGroup="None" Color="#00ff00"/></AnnotationGroups></ASAP_Annotations>'
    ).encode()


def asap_annotation(kind: str, group: str, points: list[tuple[object, object]]) -> str:
    places = "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(points))
    return (
        f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>{places}</Coordinates>'
        "</Annotation>"
    )


@pytest.mark.parametrize("name", AREAS)
def test_every_form_gives_its_area(name: str) -> None:
    area, notes, reason = AREAS[name]
    annotation = read_annotation((CASES / name).read_bytes(), PLACE)
    assert annotation.area(()).area == pytest.approx(area), reason
    found = list(annotation.notes())
    assert len(found) == len(notes)
    assert all(note in line for note, line in zip(notes, found, strict=True))


@pytest.mark.parametrize("name", ERRORS)
def test_an_outline_that_is_none_names_file_and_feature(name: str) -> None:
    with pytest.raises(InputError) as raised:
        read_annotation((CASES / name).read_bytes(), PLACE)
    assert raised.value.line.startswith(PLACE)
    assert ERRORS[name][0] in raised.value.line, ERRORS[name][1]


def test_every_case_has_a_row() -> None:
    there = {str(path.relative_to(CASES)) for folder in ("geo", "09") for path in (CASES / folder).iterdir()}
    assert there == AREAS.keys() | ERRORS.keys()


def test_a_symmetric_bow_tie_keeps_both_triangles() -> None:
    """Its signed area is 0, that of each of its triangles 100 * 50 / 2."""
    ring = [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]
    annotation = read_annotation(json.dumps({"type": "Polygon", "coordinates": [ring]}).encode(), PLACE)
    assert annotation.area(()).area == pytest.approx(5_000)


def test_a_collection_of_geometries_has_the_areas_of_its_parts() -> None:
    parts = [SQUARE, {"type": "Point", "coordinates": [5, 5]}, {"type": "GeometryCollection", "geometries": []}]
    annotation = read_annotation(json.dumps({"type": "GeometryCollection", "geometries": parts}).encode(), PLACE)
    assert annotation.area(()).area == 10_000


def test_utf_16_is_read() -> None:
    assert read_annotation(json.dumps(SQUARE).encode("utf-16"), PLACE).area(()).area == 10_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"{", "expected outlines, got another text (JSONDecodeError)"),
        (b"<xml>\n<", "expected ASAP's XML, got a text that is none in line 2"),
        (b"<xml/>", "expected ASAP's XML, got another; allowed: ASAP_Annotations at its root"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "expected ASAP's XML, got one with a document type"),
        (b"1", "expected GeoJSON, got other JSON"),
        (b"[1]", "expected GeoJSON, got other JSON"),
        (b"{}", "expected GeoJSON, got other JSON"),
        (b"[" * 100_000, "expected outlines, got another text (RecursionError)"),
        (b'{"type": "Polygon"}', "feature 1: expected a list of GeoJSON, got another value"),
        (b'{"type": "Oval", "coordinates": []}', "feature 1: expected a geometry of GeoJSON, got another object"),
        (b'[{"type": "Feature"}, {"type": "Feature", "geometry": 3}]', "feature 2: expected a geometry of GeoJSON"),
        (b'{"type": "Polygon", "coordinates": [[["1", 0], [1, 0], [1, 1]]]}', "feature 1: expected positions of two"),
        (b'{"type": "Polygon", "coordinates": [[[1], [1, 0], [1, 1]]]}', "feature 1: expected positions of two"),
        (b'{"type": "Polygon", "coordinates": [[[1e400, 0], [1, 0], [1, 1]]]}', "feature 1: expected coordinates in"),
        (b'{"type": "Polygon", "coordinates": [[[1' + b"0" * 400 + b", 0], [1, 0], [1, 1]]]}", "feature 1: expected c"),
        (b'{"type": "FeatureCollection", "features": 3}', "expected a list of GeoJSON, got another value"),
        (b"\x1f\x8bno gzip file", "expected outlines, got a damaged archive (BadGzipFile)"),
        (b"PK\x03\x04no zip", "expected outlines, got a damaged archive (BadZipFile)"),
    ],
)
def test_broken_files_are_one_line(text: bytes, line: str) -> None:
    with pytest.raises(InputError) as raised:
        read_annotation(text, PLACE)
    assert raised.value.line.startswith(PLACE)
    assert line in raised.value.line


def zipped(**members: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def test_a_zip_holds_one_file_beside_what_macos_adds() -> None:
    data = json.dumps(SQUARE).encode()
    assert read_annotation(zipped(**{"a/": b"", "a/a.geojson": data, "__MACOSX/._a": b"x"}), PLACE).area(()).area == 1e4
    with pytest.raises(InputError, match="expected a zip of one file, got 2"):
        read_annotation(zipped(a=data, b=data), PLACE)


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: zipped(a=data)], ids=["gzip", "zip"])
def test_an_archive_is_read_up_to_the_limit(pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "MAX_ANNOTATION_MB", 1)
    assert len(pack(bytes(1_100_000))) < 10_000
    with pytest.raises(InputError, match="got an archive of more than 1 MB; allowed: 1 MB"):
        read_annotation(pack(bytes(1_100_000)), PLACE)


QUPATH = features(
    ({"name": "Tumor", "color": [200, 0, 0]}, 0),
    ({"name": "Stroma", "colorRGB": -1}, 1),
    ({"names": ["Tumor", "Positive"]}, 2),
    ("Tumor", 3),
    (None, 4),
)


@pytest.mark.parametrize(
    ("classes", "lefts"),
    [
        ((), [0, 100, 200, 300, 400]),
        (("Tumor",), [0, 300]),
        (("Tumor", "Stroma"), [0, 100, 300]),
        (("Tumor: Positive",), [200]),
        (("tumor",), []),
    ],
)
def test_a_class_selects_its_features(classes: tuple[str, ...], lefts: list[int]) -> None:
    area = read_annotation(QUPATH, PLACE).area(classes)
    assert area.equals(shapely.union_all([shapely.box(left, 0, left + 100, 100) for left in lefts]))


@pytest.mark.parametrize("name", ["Ignore*", "Ignore", "ignore*"])
def test_ignored_areas_are_subtracted_whatever_is_selected(name: str) -> None:
    data = features(({"name": "Tumor"}, 0), ({"name": "Tumor"}, 1), ({"name": name}, 1))
    for classes in ((), ("Tumor",)):
        assert read_annotation(data, PLACE).area(classes).equals(shapely.box(0, 0, 100, 100))
    assert read_annotation(data, PLACE).class_names == {"Tumor"}


def test_a_class_that_no_annotation_has_is_refused_with_those_there_are() -> None:
    class_names = [read_annotation(QUPATH, PLACE).class_names, {"Necrosis"}]
    assert unmatched_classes(class_names, AnnotationConfig(annotation_class="Tumor,Stroma")) == []
    assert unmatched_classes(class_names, AnnotationConfig(annotation_class="Tumor,Lymph")) == ["Lymph"]
    with pytest.raises(InputError) as raised:
        unmatched_classes(class_names, AnnotationConfig(annotation_class="tumor"))
    assert raised.value.line == (
        "annotation_class: expected a class of the annotations, got tumor; allowed: Necrosis, Stroma, Tumor, Tumor: "
        "Positive"
    )
    with pytest.raises(InputError, match="allowed: none, since no outline has a class"):
        unmatched_classes([{None}], AnnotationConfig(annotation_class="Tumor"))


def test_asap_s_groups_are_classes_and_its_points_have_no_area() -> None:
    corners: list[tuple[object, object]] = [(0, 0), (100, 0), (100, 100), (0, 100)]
    annotation = read_annotation(
        asap(
            asap_annotation("Polygon", "Tumor", corners)
            + asap_annotation("Rectangle", "_2", [("200,0", 0), ("300,0", 0), ("300,0", 100), ("200,0", 100)])
            + asap_annotation("Spline", "None", [(400, 0), (500, 0), (500, 100)])
            + asap_annotation("Dot", "Tumor", [(7, 7)])
        ),
        PLACE,
    )
    assert annotation.class_names == {"Tumor", "_2", None}
    assert annotation.area(()).area == 10_000 + 10_000 + 5_000
    assert annotation.area(("Tumor",)).equals(shapely.box(0, 0, 100, 100))
    assert list(annotation.notes()) == ["1 of 4 features without area, skipped: feature 4"]


def test_coordinates_of_asap_are_taken_in_their_order() -> None:
    points = [(0, 0), (100, 100), (100, 0), (0, 100)]
    shuffled = asap(asap_annotation("Polygon", "Tumor", points)).replace(b'Order="1"', b'Order="2.5"')
    assert read_annotation(shuffled, PLACE).area(()).area == 10_000


@pytest.mark.parametrize("points", [[(0, 0), (1, 1)], [("x", 0), (1, 1), (0, 1)]])
def test_an_annotation_of_asap_that_encloses_nothing_is_named(points: list[tuple[object, object]]) -> None:
    good = asap_annotation("Polygon", "Tumor", [(0, 0), (9, 0), (9, 9)])
    with pytest.raises(InputError, match=r"^annotation of slide tumour-7, a\.geojson, feature 2: expected"):
        read_annotation(asap(good + asap_annotation("Polygon", "Tumor", points)), PLACE)


@pytest.mark.parametrize(
    ("data", "origin", "left_top"),
    [
        (json.dumps(SQUARE).encode(), None, (2048, 1024)),
        (json.dumps(SQUARE).encode(), "slide", (0, 0)),
        (asap(asap_annotation("Polygon", "None", [(0, 0), (9, 0), (9, 9)])), None, (0, 0)),
        (asap(asap_annotation("Polygon", "None", [(0, 0), (9, 0), (9, 9)])), "bounds", (2048, 1024)),
    ],
)
def test_geojson_begins_at_the_bounds_and_asap_s_xml_at_the_slide(
    data: bytes, origin: str | None, left_top: tuple[int, int]
) -> None:
    config = AnnotationConfig(annotation_origin=origin)
    assert read_annotation(data, PLACE).region(config, (2048, 1024)).bounds[:2] == left_top


def test_instance_labels_follow_the_share_of_overlap():
    """Patches of 100 px against a region [0, 100]^2: shares 1, 0.25, 0.24, 0 (touching edge), 0."""
    coords = np.array([(0, 0), (75, 0), (76, 0), (100, 0), (500, 500)])
    assert instance_labels(coords, 100.0, shapely.box(0, 0, 100, 100)).tolist() == [1, 1, -1, 0, 0]


def test_a_missing_annotation_names_slide_and_place(tmp_path):
    with pytest.raises(InputError, match=r"slide tumour-7: expected a file, got nothing at .*none\.geojson"):
        load_annotation(str(tmp_path / "none.geojson"), "tumour-7")
    with pytest.raises(InputError, match="slide tumour-7: expected a file, got nothing at"):
        load_annotation(str(tmp_path), "tumour-7")
    (tmp_path / "a.geojson").write_text(json.dumps(SQUARE))
    assert load_annotation(str(tmp_path / "a.geojson"), "tumour-7").area(()).area == 10_000
