"""Patch store: one Zarr v3 group per slide and the cohort's manifest.

It lies at any fsspec URI.

::

    <store>/manifest.parquet          the cohort
    <store>/annotations.json          digest of each slide's annotation at the last ingestion, and how it is read
    <store>/sources/<slide_id>.json   size and version of the slide's file at the last ingestion
    <store>/catalogue/                what the slides' own objects say, for steps that read many (``catalogue.py``)
    <store>/slides/<slide_id>.zarr    attrs (status, source, scale, counts; ``complete`` last) and the arrays
        patches (n, p, p, 3) u1, coords (n, 2) i4, tissue (n,) f4, thumbnail (h, w, 3) u1, tissue_mask (h, w) u1
        instance_labels (n,) i1 (1 positive, 0 negative, -1 left out), instance_classes (n,) i4
        features/<name> (n, d) f2 or f4

An import may lack any of them but one of patches and features; the attribute ``arrays`` names those that exist. A
quarantined slide has a group too, whose attrs hold the reason; arrays in it are left over. Readers refuse a group that
is not complete. One writer per group. Axis words: n (patch), p (patch edge in px), d (feature).
"""

import os
import posixpath
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy.typing as npt

from milcore.cohort.manifest import Manifest
from milcore.cohort.manifest_notes import lost_columns_note
from milcore.config import Codec
from milcore.errors import DamageError, StoreError
from milcore.runtime import html, storage
from milcore.runtime.progress import log_line, without_folder
from milcore.store.annotation_record import AnnotationRecord, read_annotation_record
from milcore.store.arrays import write_array
from milcore.store.catalogue import Catalogue, read_records, renew_row, resolved, usable_record
from milcore.store.group_record import parse_record, read_groups
from milcore.store.metadata import metadata_uri, write_group
from milcore.store.paths import group_ids, group_uri, source_uri
from milcore.store.row_writer import RowWriter, join, rebuild
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_record import SlideRecord
from milcore.store.slide_row import SlideRow, read_rows
from milcore.store.thumbnail import thumbnail_jpeg
from milcore.store.writer import SlideWriter

# keys that the marker of a quarantine being written lacks
IDENTITY = ("schema_version", "slide_id")
# in a notebook
SLIDES_SHOWN = 24
SHOWN_EDGE_PX = 128
# key in the metadata of the manifest's schema
_WITH_ANNOTATION_RECORD = b"annotation_record"


class StoredSlide(NamedTuple):
    """Record of a slide as its own objects hold it.

    Args:
        record: of the slide.
        source: version of its file, as ``PatchStore.source``.
    """

    record: SlideRecord
    source: dict[str, object] | None


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
        manifest, catalogue = self.manifest(), self.catalogue()
        slide_ids = catalogue.slide_ids()
        classes = {slide.slide_id: manifest.class_of(slide) for slide in manifest.slides}
        pictures = []
        for slide_id in slide_ids[:SLIDES_SHOWN]:
            data = thumbnail_jpeg(catalogue.slide(slide_id), SHOWN_EDGE_PX)
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
        """Write the cohort's manifest, unless it is equal.

        Columns that it loses are logged.
        """
        before = self.manifest() if self.has_manifest() else None
        note = None if before is None else lost_columns_note(before, manifest)
        if note is not None:
            log_line(note)
        if before != manifest or self._has_annotation_record != storage.exists(self._annotations_uri):
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

    def catalogue(self, slide_ids: Sequence[str] | None = None) -> Catalogue:
        """Read the store's catalogue: the records of slides, in a few requests.

        Args:
            slide_ids: of the slides; None: all of the manifest, in its order.

        Raises:
            StoreError: the store has no manifest.
        """
        return Catalogue.read(self.uri, self._manifest_ids() if slide_ids is None else slide_ids)

    def _manifest_ids(self) -> list[str]:
        return [slide.slide_id for slide in self.manifest().slides]

    def join_catalogue(self) -> None:
        """Join the catalogue's fragments, once the writers of slides have ended."""
        join(self.uri, self._manifest_ids())

    def rebuild_catalogue(self) -> int:
        """Make the catalogue anew from all slides; return how many are complete.

        No other process may write to the store meanwhile.
        """
        return rebuild(self.uri, self._manifest_ids())

    def row_writer(self, kind: str, slide_ids: Sequence[str], catalogue: Catalogue | None = None) -> RowWriter:
        """Writer of the catalogue's rows of slides.

        It is opened before the first of them is written.

        Args:
            kind: of the writer, such as ``ingest``.
            slide_ids: that it may write.
            catalogue: that rows are made from; None where all are made from the slides' own objects.
        """
        return RowWriter(self.uri, kind, slide_ids, catalogue)

    def record(self, slide_id: str) -> SlideRecord | None:
        """Record of a slide, read from its group.

        None where that is absent or incomplete.
        """
        return read_records(self.uri, [slide_id])[slide_id]

    def stored(self, slide_id: str) -> StoredSlide | None:
        """Record of a slide and the version of its file.

        None where its group is absent or incomplete.

        Raises:
            DamageError: its record is damaged.
        """
        group, source = metadata_uri(self.group_uri(slide_id)), source_uri(self.uri, slide_id)
        data = storage.read_all([group, source])
        record = parse_record(data[group], slide_id, self.uri) if group in data else None
        if record is None:
            return None
        return StoredSlide(resolved(record, self.uri), self.parse_source(data.get(source)))

    def stored_as_in(self, rows: Collection[SlideRow]) -> dict[str, StoredSlide]:
        """Slides whose groups are what their rows were made of.

        By one request each, which go together. The version of its file is that of the row.
        """
        groups = read_groups(self.uri, [row.slide_id for row in rows])
        return {
            row.slide_id: StoredSlide(resolved(row.record(self.uri), self.uri), self.parse_source(row.source))
            for row in rows
            if groups.get(row.slide_id) == row.group
        }

    def records(self) -> dict[str, SlideRecord | None]:
        """Record of each slide of the manifest, in its order; None as in ``record``.

        Slides of an earlier version, whose bytes cannot be checked, are told once per process.
        """
        return dict(self.catalogue().records)

    def _stored(self, record: SlideRecord) -> SlideRecord:
        return record.with_files(lambda uri: storage.relative(uri, self.uri))

    def slide_ids(self) -> list[str]:
        """Ids of the slides that can be read, in manifest order."""
        return self.catalogue().slide_ids()

    def quarantined(self) -> dict[str, str]:
        """Reason of every quarantined slide, in manifest order."""
        return self.catalogue().quarantined()

    def slide(self, slide_id: str, row: SlideRow | None = None) -> SlideGroup:
        """Open a slide's group.

        ``catalogue`` opens many, without a request for each.

        Args:
            slide_id: of the slide.
            row: of it, out of the catalogue, which spares the request; None reads the group.

        Raises:
            StoreError: it is absent, incomplete or quarantined.
        """
        record = self.record(slide_id) if row is None else resolved(row.record(self.uri), self.uri)
        record = usable_record(self.uri, slide_id, record)
        return SlideGroup(self.group_uri(slide_id), record, row, partial(renew_row, self.uri))

    def read_row(self, slide_id: str) -> SlideRow | None:
        """Make a slide's row of the catalogue from its own objects.

        None where it is absent or incomplete.
        """
        return read_rows(self.uri, [slide_id]).get(slide_id)

    def group_ids(self) -> set[str]:
        """Ids of the slides that have a folder, complete or not.

        One listing for each 1,000.
        """
        return group_ids(self.uri)

    def writer(
        self, record: SlideRecord, patch_size: int | None, codec: Codec, quality: int, *, is_new: bool = False
    ) -> SlideWriter:
        """Context that writes a slide, readable once it ends without an error.

        Objects in the group are overwritten, and those that are no part of the slide any more are removed at the end.

        Args:
            record: of the slide, as far as it is known beforehand.
            patch_size: p, in px; None for a slide without pixels, whose record has the number of instances in
                ``patches``.
            codec: codec of a patch.
            quality: JPEG quality, 1 to 100.
            is_new: the slide had no folder before, so that nothing in it is listed or removed.
        """
        uri, record = self.group_uri(record.slide_id), self._stored(record)
        return SlideWriter(uri, record, patch_size, codec, quality, is_new=is_new)

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
            return self.parse_source(storage.read_bytes(source_uri(self.uri, slide_id)))
        except FileNotFoundError:
            return None

    def parse_source(self, data: bytes | None) -> dict[str, object] | None:
        """Parse the bytes that ``write_source`` wrote; None where they are damaged."""
        try:
            source = None if data is None else storage.parse_json(data, self.uri)
        except DamageError:
            return None
        return _with_uris(source, lambda uri: storage.resolve(uri, self.uri)) if isinstance(source, dict) else None

    def write_source(self, slide_id: str, source: Mapping[str, object]) -> bytes:
        """Write the version of the slide's file, as ``source`` reads it; the bytes."""
        data = storage.json_bytes(_with_uris(source, lambda uri: storage.relative(uri, self.uri)))
        storage.write_bytes(source_uri(self.uri, slide_id), data)
        return data

    def group_uri(self, slide_id: str) -> str:
        """URI of the slide's Zarr group."""
        return group_uri(self.uri, slide_id)

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


def _with_uris(source: Mapping[str, object], change: Callable[[str], str]) -> dict[str, object]:
    """Version of a file with its URIs changed."""
    changed = {key: _with_uris(value, change) if isinstance(value, dict) else value for key, value in source.items()}
    uri = source.get("uri")
    return changed | ({"uri": change(uri)} if isinstance(uri, str) else {})
