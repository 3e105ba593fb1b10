"""The patch store: one Zarr v3 group per slide at any fsspec URI, with the cohort's manifest beside them.

::

    <store>/manifest.parquet          the cohort
    <store>/sources/<slide_id>.json   size and version of the slide's file as last seen
    <store>/slides/<slide_id>.zarr    attrs (status, source, scale, counts; ``complete`` last) and the arrays
        patches (n, p, p, 3) u1, coords (n, 2) i4, tissue (n,) f4, thumbnail (h, w, 3) u1, tissue_mask (h, w) u1
        instance_labels (n,) i1 (1 positive, 0 negative, -1 left out), instance_classes (n,) i4
        features/<name> (n, d) f2 or f4

An import may lack any of them but one of patches and features; the attribute ``arrays`` names those that are there. The
surprise: a slide that could not be used has a group too, whose attrs hold the reason; arrays in it are left-overs.
Readers refuse a group that is not complete. One writer per group. Axis words: n (patch), p (patch edge in px), d
(feature).
"""

import json
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
import zarr

from milcore.cohort.manifest import Manifest
from milcore.config import Codec
from milcore.errors import StoreError
from milcore.runtime import storage
from milcore.store.slide_group import SlideGroup, zarr_store
from milcore.store.writer import SCHEMA_VERSION, SlideWriter, write_group

State = Literal["ok", "quarantined"]


class SlideStatus(NamedTuple):
    """How a slide ended; ``attrs`` are all attributes of its group."""

    state: State
    reason: str | None
    attrs: dict[str, Any]


class PatchStore:
    """The store at a URI. Opening it reads nothing."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the cohort."""
        storage.write_table(self._manifest_uri, manifest.to_table())

    def has_manifest(self) -> bool:
        """Whether there is a cohort."""
        return storage.exists(self._manifest_uri)

    def manifest(self) -> Manifest:
        """The cohort.

        Raises:
            StoreError: there is none.
        """
        try:
            return Manifest.from_table(storage.read_table(self._manifest_uri))
        except FileNotFoundError:
            raise StoreError(
                f"{self.uri} is not a patch store (no manifest.parquet); make it by `milcore ingest`"
            ) from None

    def status(self, slide_id: str) -> SlideStatus | None:
        """How the slide ended; None while it has not."""
        data = storage.read_all([self._group_json(slide_id)])
        return _parse_status(data.get(self._group_json(slide_id)))

    def statuses(self) -> dict[str, SlideStatus | None]:
        """How each slide of the manifest ended, in its order."""
        ids = [slide.slide_id for slide in self.manifest().slides]
        data = storage.read_all([self._group_json(slide_id) for slide_id in ids])
        return {slide_id: _parse_status(data.get(self._group_json(slide_id))) for slide_id in ids}

    def slide_ids(self) -> list[str]:
        """The slides that can be read, in manifest order."""
        return [slide_id for slide_id, status in self.statuses().items() if status and status.state == "ok"]

    def quarantined(self) -> dict[str, str]:
        """The reason of every quarantined slide, in manifest order."""
        found = {slide_id: status.reason for slide_id, status in self.statuses().items() if status is not None}
        return {slide_id: reason for slide_id, reason in found.items() if reason is not None}

    def slide(self, slide_id: str) -> "SlideGroup":
        """A slide's group.

        Raises:
            StoreError: it is absent, incomplete or quarantined.
        """
        status = self.status(slide_id)
        if status is None:
            raise StoreError(f"slide {slide_id!r} is absent from {self.uri} or incomplete; run `milcore ingest` again")
        if status.state == "quarantined":
            raise StoreError(f"slide {slide_id!r} is quarantined: {status.reason}")
        return SlideGroup(self.group_uri(slide_id), status.attrs)

    def writer(
        self, slide_id: str, attrs: dict[str, Any], patch_size: int | None, codec: Codec, quality: int
    ) -> SlideWriter:
        """A context in which a slide is written; it becomes readable when the context ends without an error.

        What lies in the group is written over, and what is no part of the slide any more is removed in the end.

        Args:
            slide_id: of the slide.
            attrs: attributes known beforehand (more may be added through the writer's ``attrs``).
            patch_size: p, in px; None for a slide without pixels, whose attrs say under ``patches`` how many instances
                it has.
            codec: how a patch is stored.
            quality: JPEG quality, 1 to 100.
        """
        started = {"schema_version": SCHEMA_VERSION, "slide_id": slide_id, **attrs}
        return SlideWriter(self.group_uri(slide_id), started, patch_size, codec, quality)

    def quarantine(self, slide_id: str, reason: str, attrs: dict[str, Any], *, keep: bool = False) -> None:
        """Record that a slide cannot be used, after what was written of it was removed.

        Args:
            slide_id: of the slide.
            reason: why, for a person.
            attrs: of its group.
            keep: leave what was written: another process may be writing it at this moment, with better luck.
        """
        uri, told = self.group_uri(slide_id), {"schema_version": SCHEMA_VERSION, "slide_id": slide_id, **attrs}
        if not keep:
            write_group(uri, {"begun": attrs, "complete": False})
            storage.remove_all(storage.files(uri) - {self._group_json(slide_id)})
        write_group(uri, {**told, "status": "quarantined", "reason": reason, "complete": True})

    def source(self, slide_id: str) -> dict[str, Any] | None:
        """What was last seen of the slide's file: uri, size in bytes, version (ETag or modification time)."""
        try:
            return dict(storage.read_json(self._source_uri(slide_id)))
        except FileNotFoundError:
            return None

    def write_source(self, slide_id: str, source: dict[str, Any]) -> None:
        """Record what was seen of the slide's file."""
        storage.write_json(self._source_uri(slide_id), source)

    def group_uri(self, slide_id: str) -> str:
        """Where the slide's Zarr group lies."""
        return storage.join(self.uri, "slides", f"{slide_id}.zarr")

    def _group_json(self, slide_id: str) -> str:
        return storage.join(self.group_uri(slide_id), "zarr.json")

    def _source_uri(self, slide_id: str) -> str:
        return storage.join(self.uri, "sources", f"{slide_id}.json")

    @property
    def _manifest_uri(self) -> str:
        return storage.join(self.uri, "manifest.parquet")


def write_columns(uri: str, columns: dict[str, npt.NDArray[Any]], attrs: dict[str, Any]) -> None:
    """A Zarr v3 group of arrays of one length, each one chunk; ``complete`` is true from the end on.

    Args:
        uri: of the group; what lies there is removed.
        columns: shape (n,) each.
        attrs: attributes of the group.
    """
    storage.remove(uri)
    write_group(uri, {**attrs, "complete": False})
    group = _open_group(uri)
    for name, values in columns.items():
        group.create_array(name, data=values, chunks=(max(1, len(values)),))
    write_group(uri, {**attrs, "complete": True})


def _open_group(uri: str) -> zarr.Group:
    return zarr.open_group(zarr_store(uri), mode="r+", zarr_format=3)


def _parse_status(data: bytes | None) -> SlideStatus | None:
    attrs = {} if data is None else json.loads(data)["attributes"]
    if not attrs.get("complete"):
        return None
    return SlideStatus(attrs["status"], attrs.get("reason"), attrs)
