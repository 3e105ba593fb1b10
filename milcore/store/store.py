"""Patch store: one Zarr v3 group per slide and the cohort's manifest.

It lies at any fsspec URI.

::

    <store>/manifest.parquet          the cohort
    <store>/annotations.json          digest of each slide's annotation at the last ingestion, and how it is read
    <store>/sources/<slide_id>.json   size and version of the slide's file at the last ingestion
    <store>/slides/<slide_id>.zarr    attrs (status, source, scale, counts; ``complete`` last) and the arrays
        patches (n, p, p, 3) u1, coords (n, 2) i4, tissue (n,) f4, thumbnail (h, w, 3) u1, tissue_mask (h, w) u1
        instance_labels (n,) i1 (1 positive, 0 negative, -1 left out), instance_classes (n,) i4
        features/<name> (n, d) f2 or f4

An import may lack any of them but one of patches and features; the attribute ``arrays`` names those that exist. A
quarantined slide has a group too, whose attrs hold the reason; arrays in it are left over. Readers refuse a group that
is not complete. One writer per group. Axis words: n (patch), p (patch edge in px), d (feature).
"""

import functools
import os
import posixpath
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from milcore.cohort.manifest import Manifest
from milcore.config import Codec
from milcore.errors import DamageError, StoreError
from milcore.runtime import html, storage
from milcore.runtime.progress import log_line, without_folder
from milcore.store.annotation_record import AnnotationRecord, read_annotation_record
from milcore.store.arrays import write_array
from milcore.store.metadata import metadata_uri, parse_metadata, write_group
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_record import SCHEMA_VERSION, SlideRecord
from milcore.store.thumbnail import thumbnail_jpeg
from milcore.store.writer import SlideWriter

# keys that the marker of a quarantine being written lacks
IDENTITY = ("schema_version", "slide_id")
# in a notebook
SLIDES_SHOWN = 24
SHOWN_EDGE_PX = 128
# key in the metadata of the manifest's schema
_WITH_ANNOTATION_RECORD = b"annotation_record"


class PatchStore:
    """Patch store at a URI; constructing it reads nothing."""

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = storage.absolute(os.fspath(uri))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PatchStore) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __repr__(self) -> str:
        return f"PatchStore({self.uri})"

    def _repr_html_(self) -> str:
        """Counts and thumbnails of the first slides, for a notebook."""
        manifest, slide_ids = self.manifest(), self.slide_ids()
        classes = {slide.slide_id: manifest.classes[slide.label] for slide in manifest.slides}
        pictures = []
        for slide_id in slide_ids[:SLIDES_SHOWN]:
            data = thumbnail_jpeg(self.slide(slide_id), SHOWN_EDGE_PX)
            caption = f"{slide_id} ({classes[slide_id]})"
            pictures.append(html.line(caption) if data is None else html.picture(data, "jpeg", caption))
        first = f", the first {SLIDES_SHOWN} shown" if len(slide_ids) > SLIDES_SHOWN else ""
        text = f"{self.uri}: {len(slide_ids)} of {len(manifest.slides)} slides ok{first}"
        return html.line(text) + "".join(pictures)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the cohort's manifest.

        Local files stand in it as paths from the store.
        """
        table = manifest.with_files(lambda uri: storage.relative(uri, self.uri)).to_table()
        if storage.exists(self._annotations_uri):
            table = table.replace_schema_metadata({**table.schema.metadata, _WITH_ANNOTATION_RECORD: b"true"})
        storage.write_table(self._manifest_uri, table)

    def update_manifest(self, manifest: Manifest) -> None:
        """Write the cohort's manifest, unless it is equal."""
        is_equal = self.has_manifest() and self.manifest() == manifest
        if not is_equal or self._has_annotation_record != storage.exists(self._annotations_uri):
            self.write_manifest(manifest)

    def has_manifest(self) -> bool:
        """True where the store has a manifest."""
        return storage.exists(self._manifest_uri)

    def manifest(self) -> Manifest:
        """Read the cohort's manifest.

        Raises:
            StoreError: there is none.
        """
        try:
            stored = Manifest.from_table(storage.read_table(self._manifest_uri))
        except FileNotFoundError:
            raise StoreError(
                f"{self.uri}: expected a patch store, got no manifest.parquet; make it by `milcore ingest`"
            ) from None
        return stored.with_files(lambda uri: storage.resolve(uri, self.uri))

    def annotation_record(self) -> AnnotationRecord:
        """Annotations as the last ingestion read them.

        Empty where no slide has one, and in stores of earlier versions.

        Raises:
            DamageError: it is not what was written, or is lost.
        """
        try:
            return read_annotation_record(self._annotations_uri)
        except FileNotFoundError:
            if (
                self.has_manifest()
                and self._has_annotation_record
                and any(s.annotation for s in self.manifest().slides)
            ):
                raise DamageError(
                    f"{self._annotations_uri}: expected the record of the cohort's annotations, got no object; restore "
                    "it, or run milcore ingest again"
                ) from None
            return AnnotationRecord()

    @property
    def _has_annotation_record(self) -> bool:
        """True where the manifest says so; none of an earlier version does."""
        return _WITH_ANNOTATION_RECORD in (storage.read_table(self._manifest_uri).schema.metadata or {})

    def write_annotation_record(self, record: AnnotationRecord) -> None:
        """Write the record of the cohort's annotations, unless it is equal."""
        try:
            is_equal = self.annotation_record() == record
        except DamageError:
            is_equal = False
        if not is_equal:
            storage.write_json(self._annotations_uri, record.to_json())

    def record(self, slide_id: str) -> SlideRecord | None:
        """Record of a slide; None where its group is absent or incomplete."""
        return self._read_records([slide_id])[slide_id]

    def records(self) -> dict[str, SlideRecord | None]:
        """Record of each slide of the manifest, in its order; None as in ``record``.

        Slides of an earlier version, whose bytes cannot be checked, are told once per process.
        """
        records = self._read_records([slide.slide_id for slide in self.manifest().slides])
        unchecked = sum(record is not None and record.schema_version < SCHEMA_VERSION for record in records.values())
        if unchecked:
            _log_unchecked(self.uri, unchecked)
        return records

    def _read_records(self, slide_ids: list[str]) -> dict[str, SlideRecord | None]:
        uris = {slide_id: metadata_uri(self.group_uri(slide_id)) for slide_id in slide_ids}
        data = storage.read_all(list(uris.values()))
        return {slide_id: self._resolved(_parse_record(data.get(uri), slide_id, uri)) for slide_id, uri in uris.items()}

    def _resolved(self, record: SlideRecord | None) -> SlideRecord | None:
        return record and record.with_files(lambda uri: storage.resolve(uri, self.uri))

    def _stored(self, record: SlideRecord) -> SlideRecord:
        return record.with_files(lambda uri: storage.relative(uri, self.uri))

    def slide_ids(self) -> list[str]:
        """Ids of the slides that can be read, in manifest order."""
        return [slide_id for slide_id, record in self.records().items() if record and record.status == "ok"]

    def quarantined(self) -> dict[str, str]:
        """Reason of every quarantined slide, in manifest order."""
        reasons = {slide_id: record.reason for slide_id, record in self.records().items() if record is not None}
        return {slide_id: reason for slide_id, reason in reasons.items() if reason is not None}

    def slide(self, slide_id: str) -> SlideGroup:
        """Open a slide's group.

        Raises:
            StoreError: it is absent, incomplete or quarantined.
        """
        record = self.record(slide_id)
        if record is None:
            raise StoreError(f"slide {slide_id!r} is absent from {self.uri} or incomplete; run `milcore ingest` again")
        if record.status == "quarantined":
            raise StoreError(f"slide {slide_id!r} is quarantined: {record.reason}")
        return SlideGroup(self.group_uri(slide_id), record)

    def writer(self, record: SlideRecord, patch_size: int | None, codec: Codec, quality: int) -> SlideWriter:
        """Context that writes a slide, readable once it ends without an error.

        Objects in the group are overwritten, and those that are no part of the slide any more are removed at the end.

        Args:
            record: of the slide, as far as it is known beforehand.
            patch_size: p, in px; None for a slide without pixels, whose record has the number of instances in
                ``patches``.
            codec: codec of a patch.
            quality: JPEG quality, 1 to 100.
        """
        return SlideWriter(self.group_uri(record.slide_id), self._stored(record), patch_size, codec, quality)

    def quarantine(self, record: SlideRecord, reason: str, *, keep: bool = False) -> str:
        """Quarantine a slide, after removing its arrays; the reason as it is stored.

        Args:
            record: of the slide, as far as it is known.
            reason: why, for a person.
            keep: leave the arrays: another process may be writing them at this moment, and succeed.
        """
        uri, source, record = self.group_uri(record.slide_id), record.source, self._stored(record)
        reason = without_folder(reason, posixpath.dirname(self.uri))
        if source is not None:
            reason = reason.replace(source.uri, storage.relative(source.uri, self.uri))
        if not keep:
            begun = {key: value for key, value in record.to_attrs().items() if key not in IDENTITY}
            write_group(uri, {"begun": begun, "complete": False})
            storage.remove_all(storage.files(uri) - {metadata_uri(uri)})
        write_group(uri, replace(record, status="quarantined", reason=reason).to_complete_attrs())
        return reason

    def source(self, slide_id: str) -> dict[str, object] | None:
        """Version of the slide's file at the last ingestion; None before the first.

        None too where it is damaged: the file itself is read then. ``uri``, ``size`` in bytes and ``version`` (ETag or
        modification time).
        """
        try:
            source = storage.read_json(self._source_uri(slide_id))
        except (FileNotFoundError, DamageError):
            return None
        return _with_uris(source, lambda uri: storage.resolve(uri, self.uri)) if isinstance(source, dict) else None

    def write_source(self, slide_id: str, source: Mapping[str, object]) -> None:
        """Write the version of the slide's file, as ``source`` reads it."""
        stored = _with_uris(source, lambda uri: storage.relative(uri, self.uri))
        storage.write_json(self._source_uri(slide_id), stored)

    def group_uri(self, slide_id: str) -> str:
        """URI of the slide's Zarr group."""
        return storage.join(self.uri, "slides", f"{slide_id}.zarr")

    def _source_uri(self, slide_id: str) -> str:
        return storage.join(self.uri, "sources", f"{slide_id}.json")

    @property
    def _annotations_uri(self) -> str:
        return storage.join(self.uri, "annotations.json")

    @property
    def _manifest_uri(self) -> str:
        return storage.join(self.uri, "manifest.parquet")


def write_columns(
    uri: str, columns: dict[str, npt.NDArray[Any]], attrs: dict[str, Any], stored: Collection[str] | None = None
) -> None:
    """Write a Zarr v3 group of arrays of one length, each one chunk.

    Its attribute ``complete`` is false until the end. Arrays of the same columns are overwritten, not removed, so two
    writers of them do each other no harm.

    Args:
        uri: of the group; other arrays there are removed.
        columns: shape (n,) each.
        attrs: attributes of the group.
        stored: names of the arrays that stand in the group; None: the group is listed.
    """
    arrays = {file.removeprefix(f"{uri}/").split("/")[0] for file in storage.files(uri)} if stored is None else stored
    write_group(uri, {**attrs, "complete": False})
    for name, values in columns.items():
        write_array(storage.join(uri, name), values, {})
    for name in {*arrays} - {*columns, "zarr.json"}:
        storage.remove_folder(storage.join(uri, name))
    write_group(uri, {**attrs, "complete": True})


def _parse_record(data: bytes | None, slide_id: str, uri: str) -> SlideRecord | None:
    """Record of a slide from its ``zarr.json``; None where that is incomplete.

    Raises:
        DamageError: it is damaged, or of another slide.
        StoreError: it is of a later version.
    """
    if data is None:
        return None
    try:
        metadata = parse_metadata(data, uri)
    except DamageError as error:
        raise DamageError(f"slide {slide_id!r}: {error.line}, or run milcore ingest or milcore import again") from None
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


def _with_uris(source: Mapping[str, object], change: Callable[[str], str]) -> dict[str, object]:
    """Version of a file with its URIs changed."""
    changed = {key: _with_uris(value, change) if isinstance(value, dict) else value for key, value in source.items()}
    uri = source.get("uri")
    return changed | ({"uri": change(uri)} if isinstance(uri, str) else {})


def _another_record(slide_id: str, uri: str, got: str) -> DamageError:
    return DamageError(
        f"slide {slide_id!r}: {uri}: expected the record of this slide, got {got}; restore it, or run milcore "
        "ingest or milcore import again"
    )


@functools.cache
def _log_unchecked(uri: str, slides: int) -> None:
    log_line(
        f"{uri}: {slides} slides were written by an earlier version, without checksums: a changed byte would not be "
        "noticed; ingest them into a new store to have them checked"
    )
