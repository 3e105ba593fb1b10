"""Record of a slide out of the ``zarr.json`` of its group."""

from collections.abc import Iterable, Mapping
from typing import Any

from milcore.errors import DamageError, StoreError
from milcore.runtime import storage
from milcore.store.metadata import metadata_uri, parse_metadata
from milcore.store.paths import group_uri
from milcore.store.slide_record import SCHEMA_VERSION, SlideRecord


def read_groups(store_uri: str, slide_ids: Iterable[str]) -> dict[str, bytes]:
    """``zarr.json`` of the groups of slides that have one, by concurrent requests."""
    uris = {slide_id: metadata_uri(group_uri(store_uri, slide_id)) for slide_id in slide_ids}
    data = storage.read_all(list(uris.values()))
    return {slide_id: data[uri] for slide_id, uri in uris.items() if uri in data}


def parse_record(data: bytes, slide_id: str, store_uri: str) -> SlideRecord | None:
    """Record of a slide from its ``zarr.json``; None where that is incomplete.

    Args:
        data: its bytes.
        slide_id: of the slide.
        store_uri: of the store, which they were read from.

    Raises:
        DamageError: it is damaged, or of another slide.
        StoreError: it is of a later version.
    """
    uri = metadata_uri(group_uri(store_uri, slide_id))
    try:
        metadata = parse_metadata(data, uri)
    except DamageError as error:
        raise DamageError(f"slide {slide_id!r}: {error.line}, or run milcore ingest or milcore import again") from None
    return record_of_metadata(metadata, slide_id, uri)


def record_of_metadata(metadata: Mapping[str, Any], slide_id: str, uri: str) -> SlideRecord | None:
    """Record of a slide from the content of its ``zarr.json``, as ``parse_record``."""
    attrs = metadata["attributes"]
    if not attrs.get("complete"):
        return None
    if metadata.get("node_type") != "group":
        raise _another_record(slide_id, uri, "the metadata of an array")
    record = SlideRecord.from_attrs(attrs)
    if record.schema_version > SCHEMA_VERSION:
        raise StoreError(
            f"slide {slide_id!r}: {uri}: expected schema_version {SCHEMA_VERSION}, got {record.schema_version}; "
            f"allowed: 1 to {SCHEMA_VERSION}; install a later version of milcore"
        )
    if record.slide_id != slide_id:
        raise _another_record(slide_id, uri, f"the one of {record.slide_id!r}")
    return record


def _another_record(slide_id: str, uri: str, got: str) -> DamageError:
    return DamageError(
        f"slide {slide_id!r}: {uri}: expected the record of this slide, got {got}; restore it, or run milcore "
        "ingest or milcore import again"
    )
