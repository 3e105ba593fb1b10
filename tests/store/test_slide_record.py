"""A record's JSON has the keys of the store, and parsing it gives the record back."""

import json
from dataclasses import fields
from typing import Any

import pytest

from milcore.errors import StoreError
from milcore.store.slide_record import (
    ImportOrigin,
    ScanRecord,
    SlideMpp,
    SlideRecord,
    SourceFile,
    TileCounts,
)

AFFINE = [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]
INGESTED = SlideRecord(
    "a",
    status="ok",
    parameters={"mpp": 0.5, "default_mpp": None},
    source=SourceFile("/a.svs", 7, sha256="ab"),
    size_level0=(400, 200),
    bounds=(100, 50, 256, 128),
    mpp=SlideMpp(0.5, 0.5, 0.5, "slide"),
    patch_size_level0=64.0,
    patch_size=64,
    codec="jpeg",
    counts=TileCounts(18, 9, 0, 9),
    patches=9,
    patches_digest="cd",
    arrays=("coords", "patches"),
    scan=ScanRecord("tiff:generic", AFFINE, None, {"method": "m"}, unread_images=[[40, 20]]),
)
INGESTED_ATTRS = {
    "schema_version": 2,
    "slide_id": "a",
    "status": "ok",
    "parameters": {"mpp": 0.5, "default_mpp": None},
    "source": {"uri": "/a.svs", "size": 7, "sha256": "ab"},
    "size_level0": [400, 200],
    "bounds": [100, 50, 256, 128],
    "mpp": {"level0": 0.5, "target": 0.5, "patch": 0.5, "from": "slide"},
    "patch_size_level0": 64.0,
    "patch_size": 64,
    "codec": "jpeg",
    "counts": {"grid": 18, "tissue": 9, "unreadable": 0, "patches": 9},
    "patches": 9,
    "patches_digest": "cd",
    "arrays": ["coords", "patches"],
    "reader": "tiff:generic",
    "level0_affine": AFFINE,
    "icc_sha256": None,
    "tissue": {"method": "m"},
    "codec_instead": None,
    "stain_normalisation": None,
    "unread_images": [[40, 20]],
}
IMPORTED = SlideRecord(
    "b",
    status="ok",
    parameters={"name": "imported"},
    source=SourceFile("/b.h5", sha256="ef"),
    import_origin=ImportOrigin("clam", "features/imported"),
    size_level0=(1024, 768),
    mpp=SlideMpp(0.25, None, None, "labels"),
    patch_size_level0=256.0,
    patch_size_level0_origin="grid step",
    patches=12,
    arrays=("coords",),
    features_width=5,
    no_picture="cannot read",
    instance_class_names=(),
)
IMPORTED_ATTRS = {
    "schema_version": 2,
    "slide_id": "b",
    "status": "ok",
    "parameters": {"name": "imported"},
    "source": {"uri": "/b.h5", "sha256": "ef"},
    "imported": {"format": "clam", "as": "features/imported"},
    "size_level0": [1024, 768],
    "mpp": {"level0": 0.25, "target": None, "patch": None, "from": "labels"},
    "patch_size_level0": 256.0,
    "patch_size_level0_from": "grid step",
    "patches": 12,
    "arrays": ["coords"],
    "features_width": 5,
    "no_picture": "cannot read",
    "instance_class_names": [],
}
REMOTE = SlideRecord("c", status="quarantined", reason="too small", source=SourceFile("s3://c", 7, etag="e"))
REMOTE_ATTRS = {
    "schema_version": 2,
    "slide_id": "c",
    "status": "quarantined",
    "reason": "too small",
    "source": {"uri": "s3://c", "size": 7, "etag": "e"},
}
RETRY = SlideRecord("d", status="quarantined", reason="NaN", retry=False)
RETRY_ATTRS = {"schema_version": 2, "slide_id": "d", "status": "quarantined", "reason": "NaN", "retry": False}
CASES = [(INGESTED, INGESTED_ATTRS), (IMPORTED, IMPORTED_ATTRS), (REMOTE, REMOTE_ATTRS), (RETRY, RETRY_ATTRS)]


@pytest.mark.parametrize(("record", "attrs"), CASES, ids=["ingested", "imported", "remote", "retry"])
def test_a_record_is_its_json_and_back(record: SlideRecord, attrs: dict[str, Any]) -> None:
    assert json.loads(json.dumps(record.to_attrs())) == attrs
    assert record.to_complete_attrs() == record.to_attrs() | {"complete": True}
    assert SlideRecord.from_attrs(attrs | {"complete": True}) == record


def test_the_cases_cover_every_field() -> None:
    covered = {field.name for record, _ in CASES for field in fields(record) if getattr(record, field.name) is not None}
    assert covered == {field.name for field in fields(SlideRecord)}


def test_keys_of_another_version_may_be_unknown_or_absent() -> None:
    record = SlideRecord.from_attrs({"slide_id": "a", "schema_version": 2, "patches": 3, "colour": "red"})
    assert record == SlideRecord("a", patches=3)
    assert (record.instances, record.arrays, record.patch_mpp, SlideRecord("a").instances) == (3, None, None, 0)


@pytest.mark.parametrize(
    ("attrs", "line"),
    [
        ({"slide_id": "../../x"}, "attributes of a slide: slide_id: expected a name for files, got '../../x'"),
        ({"slide_id": None}, "attributes of a slide: slide_id: expected a name for files, got None"),
        ({"schema_version": None}, "slide 'a': schema_version: expected a value that milcore writes, got None"),
        ({"patches": 10**18}, "slide 'a': patches: expected a value that milcore writes, got 10000"),
        ({"patches": "3"}, "slide 'a': patches: expected"),
        ({"patch_size": 10**9}, "slide 'a': patch_size: expected"),
        ({"size_level0": [10**6, 10**6]}, "slide 'a': size_level0: expected"),
        ({"size_level0": [1, 10**9]}, "slide 'a': size_level0: expected"),
        ({"size_level0": [0, 5]}, "slide 'a': size_level0: expected"),
        ({"size_level0": [1, 2, 3]}, "slide 'a': expected the attributes that milcore writes"),
        ({"bounds": [1, 2, 3]}, "slide 'a': bounds: expected a value that milcore writes"),
        ({"bounds": [0, 0, 0, 5]}, "slide 'a': bounds: expected"),
        ({"bounds": [-1, 0, 5, 5]}, "slide 'a': bounds: expected"),
        ({"bounds": [0, 0, 5, 10**9]}, "slide 'a': bounds: expected"),
        ({"bounds": [0, 0, 5, "5"]}, "slide 'a': bounds: expected"),
        ({"bounds": 7}, "slide 'a': expected the attributes"),
        ({"patch_size_level0": -1.0}, "slide 'a': patch_size_level0: expected"),
        ({"mpp": 3}, "slide 'a': expected the attributes that milcore writes"),
        ({"mpp": {"level0": "x"}}, "slide 'a': mpp: expected"),
        ({"status": "fine"}, "slide 'a': status: expected"),
        ({"codec": "pickle"}, "slide 'a': codec: expected"),
        ({"arrays": 5}, "slide 'a': expected the attributes"),
    ],
)
def test_attributes_of_another_author_are_checked(attrs: dict[str, Any], line: str) -> None:
    with pytest.raises(StoreError) as raised:
        SlideRecord.from_attrs({"slide_id": "a"} | attrs)
    assert raised.value.line.startswith(line)


def test_the_largest_slide_of_a_scanner_is_in_range() -> None:
    size = (250_000, 200_000)
    assert SlideRecord.from_attrs({"slide_id": "a", "size_level0": list(size), "patches": 10**6}).size_level0 == size


@pytest.mark.parametrize(
    ("reader", "bounds", "lacks"),
    [
        ("openslide:mirax", None, True),
        ("openslide:mirax", (0, 0, 400, 200), False),
        ("tiff:aperio", None, False),
    ],
)
def test_bounds_may_be_missing_where_an_earlier_version_read_through_openslide(
    reader: str, bounds: tuple[int, int, int, int] | None, lacks: bool
) -> None:
    record = SlideRecord("a", bounds=bounds, scan=ScanRecord(reader, AFFINE, None, {}))
    assert record.lacks_bounds is lacks
    assert not SlideRecord("a").lacks_bounds
