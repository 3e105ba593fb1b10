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

import hashlib
import json
import re
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import FsspecStore, LocalStore

from milcore.config import Codec
from milcore.errors import InputError, StoreError
from milcore.manifest import Manifest
from milcore.runtime import storage
from milcore.shards import ShardReader, write_rows
from milcore.slide_writer import SCHEMA_VERSION, SlideWriter, write_group

FEATURE_CHUNK_MB = 32
INGESTED = ("patches", "coords", "tissue", "thumbnail")
_FEATURE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

State = Literal["ok", "quarantined"]
FeatureArray = npt.NDArray[np.float16] | npt.NDArray[np.float32]


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


class SlideGroup:
    """A complete slide of the store. Arrays are read when asked for."""

    def __init__(self, uri: str, attrs: dict[str, Any]) -> None:
        self.uri = uri
        self.attrs = attrs
        self.slide_id: str = attrs["slide_id"]
        self.patch_size: int | None = attrs.get("patch_size")
        self.patches_digest: str | None = attrs.get("patches_digest")
        self.imported: dict[str, Any] | None = attrs.get("imported")
        self._arrays = arrays = attrs.get("arrays", INGESTED)
        self.has_patches, self.has_coords = "patches" in arrays, "coords" in arrays
        self.has_thumbnail = "thumbnail" in arrays

    def __len__(self) -> int:
        return int(self.attrs["patches"])

    @property
    def size_level0(self) -> float:
        """Patch edge in level-0 px; known where there are coords."""
        self._expect("coords")
        return float(self.attrs["patch_size_level0"])

    @cached_property
    def coords(self) -> npt.NDArray[np.int32]:
        """Corner (x, y) of every patch in level-0 px, shape (n, 2)."""
        return self._array("coords").astype(np.int32, copy=False)

    @cached_property
    def tissue(self) -> npt.NDArray[np.float32] | None:
        """Share of every patch's area that is tissue, shape (n,); None in an import."""
        return self._array("tissue").astype(np.float32, copy=False) if "tissue" in self._arrays else None

    @cached_property
    def instance_labels(self) -> npt.NDArray[np.int8] | None:
        """1 for a positive instance, 0 for a negative, -1 for one left out, shape (n,); None where an import had none.

        They serve localisation metrics only: nothing is trained on them.
        """
        return self._array("instance_labels") if "instance_labels" in self._arrays else None

    @property
    def thumbnail(self) -> npt.NDArray[np.uint8]:
        """The whole slide, small, shape (h, w, 3)."""
        return self._array("thumbnail").astype(np.uint8, copy=False)

    @property
    def tissue_mask(self) -> npt.NDArray[np.bool_] | None:
        """Where the slide shows tissue, shape (h, w), the whole slide at a scale of its own; None where unknown."""
        return self._array("tissue_mask").astype(bool) if "tissue_mask" in self._arrays else None

    def patches(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Patches ``start`` to ``stop`` (exclusive), shape (k, p, p, 3)."""
        self._expect("patches")
        return self._shards.read(start, stop)

    def jpegs(self, start: int, stop: int) -> list[npt.NDArray[np.uint8]]:
        """Patches ``start`` to ``stop`` (exclusive) as the JPEG files they are stored as; another codec is refused."""
        self._expect("patches")
        if self.attrs.get("codec") != "jpeg":
            raise StoreError(f"slide {self.slide_id!r} has patches of codec {self.attrs.get('codec')}; allowed: jpeg")
        return self._shards.chunks(start, stop)

    def features(self, name: str) -> "Features":
        """The instance features of this name; nothing is read yet.

        Raises:
            StoreError: they are absent or incomplete.
        """
        self.feature_attrs(name)
        return Features(zarr.open_array(_zarr_store(self.uri), path=f"features/{name}", mode="r"))

    def feature_attrs(self, name: str) -> dict[str, Any]:
        """Attributes of the features: ``digest`` and what the encoder recorded.

        Raises:
            StoreError: they are absent or incomplete.
        """
        attrs = self._feature_attrs(name)
        if attrs is None:
            there = ", ".join(self.feature_names()) or "none"
            raise StoreError(f"slide {self.slide_id!r} has no complete features {name!r}; there are: {there}")
        return attrs

    def has_features(self, name: str) -> bool:
        """Whether complete features of this name are there."""
        return self._feature_attrs(name) is not None

    def feature_names(self) -> list[str]:
        """Names of the complete features."""
        names = storage.names(storage.join(self.uri, "features"))
        return [name for name in names if name != "zarr.json" and self.has_features(name)]

    def write_features(self, name: str, array: FeatureArray, attrs: dict[str, Any]) -> None:
        """Write instance features; the array is there, for any reader, once its last object is written.

        Features that are there already, equal and of the same making, are left alone: a second writer spoils nothing.

        Args:
            name: of the features: letters, digits, '.', '_' and '-'.
            array: shape (n, d), one row per patch; float16 or float32, kept as it is.
            attrs: what made them (encoder, weights digest, transform).

        Raises:
            InputError: the name cannot name a folder, the type is another, or the rows are not one per patch.
        """
        if not _FEATURE_NAME.fullmatch(name):
            raise InputError(f"features name {name!r}: allowed: letters, digits, '.', '_' and '-'")
        if array.ndim != 2 or len(array) != len(self):
            raise InputError(f"features of shape {array.shape} for {len(self)} patches of {self.slide_id!r}")
        if array.dtype not in (np.float16, np.float32):
            raise InputError(f"features of type {array.dtype} for {self.slide_id!r}; allowed: float16, float32")
        values = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest = hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()
        told, uri = {**attrs, "digest": digest, "complete": True}, storage.join(self.uri, "features", name)
        if self._feature_attrs(name) == told:
            return
        before = storage.files(uri)
        storage.remove(storage.join(uri, "zarr.json"))
        write_group(storage.join(self.uri, "features"), {})
        rows = max(1, min(len(values), int(FEATURE_CHUNK_MB * 1e6 / (values.itemsize * values.shape[1]))))
        storage.remove_all(before - write_rows(uri, values, rows, told))

    def _feature_attrs(self, name: str) -> dict[str, Any] | None:
        try:
            attrs = storage.read_json(storage.join(self.uri, "features", name, "zarr.json"))["attributes"]
        except FileNotFoundError:
            return None
        return dict(attrs) if attrs.get("complete") else None

    @cached_property
    def _shards(self) -> ShardReader:
        return ShardReader(storage.join(self.uri, "patches"))

    def _expect(self, name: str) -> None:
        """Refuse what an import did not bring."""
        if name not in self._arrays:
            there = ", ".join([*self._arrays, *(f"features/{each}" for each in self.feature_names())])
            raise StoreError(f"slide {self.slide_id!r} was imported without {name}; there are: {there}")

    def _array(self, name: str) -> npt.NDArray[Any]:
        self._expect(name)
        return np.asarray(zarr.open_array(_zarr_store(self.uri), path=name, mode="r")[...])


class Features:
    """Instance features (n, d) of one slide, read by runs of rows."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])
        self.rows_per_chunk: int = array.chunks[0]

    def read(self, start: int, stop: int) -> FeatureArray:
        """Rows ``start`` to ``stop`` (exclusive), shape (k, d), as they were stored."""
        return np.asarray(self._array[start:stop])


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


def _zarr_store(uri: str) -> LocalStore | FsspecStore:
    if storage.is_local(uri):
        return LocalStore(storage.absolute(uri))
    return FsspecStore.from_url(uri, storage_options={"use_listings_cache": False})


def _open_group(uri: str) -> zarr.Group:
    return zarr.open_group(_zarr_store(uri), mode="r+", zarr_format=3)


def _parse_status(data: bytes | None) -> SlideStatus | None:
    attrs = {} if data is None else json.loads(data)["attributes"]
    if not attrs.get("complete"):
        return None
    return SlideStatus(attrs["status"], attrs.get("reason"), attrs)
