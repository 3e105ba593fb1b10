"""Zarr group of one slide: its patches, coords, thumbnail and instance features."""

import hashlib
import re
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from milcore.config import MAX_WIDTH
from milcore.errors import DamageError, InputError, StoreError
from milcore.runtime import storage
from milcore.store.arrays import ArrayReader, RowChunks
from milcore.store.checksums import ATTRIBUTE as CHECKSUMS
from milcore.store.feature_type import FeatureArray, FeatureType
from milcore.store.metadata import array_attributes, metadata_uri, read_array_metadata, write_group
from milcore.store.shards import ShardReader
from milcore.store.slide_record import SlideRecord

FEATURE_CHUNK_MB = 32
# of a slide whose record names no arrays, as earlier versions wrote it
INGESTED_ARRAYS = ("patches", "coords", "tissue", "thumbnail")
_FEATURE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SlideGroup:
    """A complete slide of the store; its arrays are read on access.

    Args:
        uri: of the group.
        record: of the slide, complete and not in quarantine.
    """

    def __init__(self, uri: str, record: SlideRecord) -> None:
        self.uri = uri
        self.record = record
        self.slide_id = record.slide_id
        self.patch_size = record.patch_size
        self.patches_digest = record.patches_digest
        self._arrays = arrays = INGESTED_ARRAYS if record.arrays is None else record.arrays
        self.has_patches, self.has_coords = "patches" in arrays, "coords" in arrays
        self.has_thumbnail = "thumbnail" in arrays

    def __len__(self) -> int:
        if self.record.patches is None:
            raise StoreError(f"slide {self.slide_id!r} has no count of patches in its attributes; ingest it again")
        return self.record.patches

    @property
    def patch_size_level0(self) -> float:
        """Patch edge in level-0 px.

        Raises:
            StoreError: the slide has no coords.
        """
        edge = self.record.patch_size_level0
        if not self.has_coords or edge is None:
            raise self._missing("coords")
        return float(edge)

    @property
    def size_level0(self) -> tuple[int, int]:
        """(width, height) of the slide in level-0 px.

        Raises:
            StoreError: an import does not know it.
        """
        size = self.record.size_level0
        if size is None:
            raise self._missing("the slide's size")
        return size

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """(left, top, width, height) of the part that was scanned, in level-0 px.

        The whole slide where none is known.

        Raises:
            StoreError: an import does not know the slide's size.
        """
        return self.record.bounds or (0, 0, *self.size_level0)

    @property
    def bounds_corner(self) -> tuple[int, int]:
        """Upper left corner (x, y) of the part that was scanned, in level-0 px."""
        left, top, *_ = self.record.bounds or (0, 0)
        return left, top

    @cached_property
    def coords(self) -> npt.NDArray[np.int32]:
        """Corner (x, y) of every patch in level-0 px, shape (n, 2)."""
        return self.array("coords").astype(np.int32, copy=False)

    @cached_property
    def tissue(self) -> npt.NDArray[np.float32] | None:
        """Tissue fraction of every patch's area, shape (n,); None in an import."""
        return self.array("tissue").astype(np.float32, copy=False) if "tissue" in self._arrays else None

    @cached_property
    def instance_labels(self) -> npt.NDArray[np.int8] | None:
        """Label of every instance, shape (n,): 1 positive, 0 negative, -1 left out.

        None where an import has none. They are for localisation metrics only: nothing is trained on them.
        """
        return self.array("instance_labels") if "instance_labels" in self._arrays else None

    @property
    def thumbnail(self) -> npt.NDArray[np.uint8]:
        """Thumbnail of the whole slide, shape (h, w, 3)."""
        return self.array("thumbnail").astype(np.uint8, copy=False)

    @property
    def tissue_mask(self) -> npt.NDArray[np.bool_] | None:
        """True where there is tissue, shape (h, w); None where unknown.

        It covers the whole slide, at a scale of its own.
        """
        return self.array("tissue_mask").astype(bool) if "tissue_mask" in self._arrays else None

    def patches(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Read patches ``start`` to ``stop`` (exclusive), shape (k, p, p, 3)."""
        self._expect("patches")
        return self._shards.read(start, stop)

    def jpegs(self, start: int, stop: int) -> list[npt.NDArray[np.uint8]]:
        """Read patches ``start`` to ``stop`` (exclusive) as JPEG files.

        Raises:
            StoreError: they are stored in another codec.
        """
        if self.record.codec != "jpeg":
            raise StoreError(
                f"slide {self.slide_id!r}: expected patches stored as JPEG files, got codec {self.record.codec}; "
                "allowed: jpeg"
            )
        return self.chunks(start, stop)

    def chunks(self, start: int, stop: int) -> list[npt.NDArray[np.uint8]]:
        """Read the stored bytes of patches ``start`` to ``stop`` (exclusive), without decoding them."""
        self._expect("patches")
        return self._shards.chunks(start, stop)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Read one of ``array_names`` but patches."""
        self._expect(name)
        return self._reader(name).read_all()

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the arrays that the slide has, without features."""
        return tuple(self._arrays)

    def features(self, name: str) -> "Features":
        """Open the instance features of this name; no values are read.

        Raises:
            StoreError: they are absent or incomplete.
        """
        self.feature_attrs(name)
        return Features(self._reader(f"features/{name}"))

    def feature_attrs(self, name: str) -> dict[str, Any]:
        """Attributes of the features: ``digest`` and those of the encoder or import.

        Raises:
            StoreError: they are absent, incomplete, damaged, or those of another slide.
        """
        attrs = self.stored_feature_attrs(name)
        if attrs is None:
            there = ", ".join(self.feature_names()) or "none"
            raise StoreError(f"slide {self.slide_id!r}: expected complete features/{name}, got none; allowed: {there}")
        return attrs

    def feature_type(self, name: str) -> FeatureType:
        """Type in which the features of this name are stored."""
        return self.features(name).type

    def has_features(self, name: str) -> bool:
        """True where there are complete features of this name."""
        return self.stored_feature_attrs(name) is not None

    def stored_feature_attrs(self, name: str) -> dict[str, Any] | None:
        """Attributes of the features, as ``feature_attrs``; None where they are absent or incomplete.

        Raises:
            DamageError: they are damaged, or those of another slide.
        """
        try:
            attrs: dict[str, Any] = read_array_metadata(storage.join(self.uri, "features", name))["attributes"]
        except FileNotFoundError:
            return None
        self._check_owner(f"features/{name}", attrs)
        return attrs if attrs.get("complete") else None

    def feature_names(self) -> list[str]:
        """Names of the complete features."""
        names = storage.names(storage.join(self.uri, "features"))
        return [name for name in names if name != "zarr.json" and self.has_features(name)]

    def write_features(self, name: str, array: FeatureArray, attrs: dict[str, Any]) -> None:
        """Write instance features; readers find them after the last object is written.

        Equal features with equal attributes are not written again, so a second writer does no harm.

        Args:
            name: of the features: letters, digits, '.', '_' and '-'.
            array: shape (n, d), one row per patch; float16 or float32, stored as it is.
            attrs: encoder, weights digest, transform, or the source of an import.

        Raises:
            InputError: the name cannot name a folder, the type is another, or the rows are not one per patch.
        """
        if not _FEATURE_NAME.fullmatch(name):
            raise InputError(
                f"name: expected a name for features, got {name!r}; allowed: letters, digits, '.', '_' and '-'"
            )
        if array.ndim != 2 or len(array) != len(self) or array.shape[1] > MAX_WIDTH:
            raise InputError(
                f"features of slide {self.slide_id!r}: expected a row per patch, got shape {array.shape} for "
                f"{len(self)} patches; allowed: ({len(self)}, features), at most {MAX_WIDTH:,} features"
            )
        if array.dtype not in (np.float16, np.float32):
            raise InputError(
                f"features of slide {self.slide_id!r}: expected floating-point numbers, got {array.dtype}; allowed: "
                "float16, float32"
            )
        values = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        rows = max(1, min(len(values), int(FEATURE_CHUNK_MB * 1e6 / (values.itemsize * values.shape[1]))))
        chunks = RowChunks(values, rows)
        final_attrs = {
            **attrs,
            **array_attributes(self.slide_id, f"features/{name}"),
            "digest": features_digest(values),
            "complete": True,
            **chunks.attributes,
        }
        if self._are_stored(name, final_attrs):
            return
        uri = storage.join(self.uri, "features", name)
        before = storage.files(uri)
        storage.remove(metadata_uri(uri))
        write_group(storage.join(self.uri, "features"), {})
        storage.remove_all(before - chunks.write(uri, final_attrs))

    def _are_stored(self, name: str, attrs: dict[str, Any]) -> bool:
        """True where features with these attributes are there, in chunks of any length."""
        try:
            stored = self.stored_feature_attrs(name) or {}
        except DamageError:
            return False  # they are written again
        return stored | {CHECKSUMS: attrs[CHECKSUMS]} == attrs and CHECKSUMS in stored

    @cached_property
    def _shards(self) -> ShardReader:
        uri = storage.join(self.uri, "patches")
        reader = ShardReader(uri, f"slide {self.slide_id!r}: patches", self._remedy(uri))
        self._check_owner("patches", reader.attributes)
        return reader

    def _reader(self, name: str) -> ArrayReader:
        uri = storage.join(self.uri, name)
        reader = ArrayReader(uri, f"slide {self.slide_id!r}: {name}", self._remedy(uri))
        self._check_owner(name, reader.attributes)
        if name.startswith("features/") and (len(reader.shape) != 2 or reader.shape[1] > MAX_WIDTH):
            raise StoreError(
                f"slide {self.slide_id!r}: {name}: expected features, got shape {reader.shape}; allowed: (instances, "
                f"features), {MAX_WIDTH:,} features at most"
            )
        return reader

    def _remedy(self, uri: str) -> str:
        """The way to make an array again."""
        if uri.startswith(storage.join(self.uri, "features/")):
            return f"remove {uri} and run milcore encode or milcore import again"
        return f"remove {metadata_uri(self.uri)} and run milcore ingest or milcore import again"

    def _check_owner(self, name: str, attributes: dict[str, Any]) -> None:
        """Refuse an array that belongs to another slide, or is another of this one."""
        uri, owner = storage.join(self.uri, name), attributes.get("slide_id", self.slide_id)
        array = attributes.get("array", name)
        if owner != self.slide_id or array != name:
            got = f"the one of {owner!r}" if owner != self.slide_id else str(array)
            raise DamageError(
                f"slide {self.slide_id!r}: {uri}: expected the array of this slide, got {got}; restore it, or "
                f"{self._remedy(uri)}"
            )

    def _expect(self, name: str) -> None:
        """Refuse an array that the slide was imported without."""
        if name not in self._arrays:
            raise self._missing(name)

    def _missing(self, name: str) -> StoreError:
        there = ", ".join([*self._arrays, *(f"features/{feature}" for feature in self.feature_names())])
        return StoreError(f"slide {self.slide_id!r}: expected {name}, got an import without; allowed: {there}")


def features_digest(values: npt.NDArray[Any]) -> str:
    """Sha256 of the shape and values of features."""
    sha256 = hashlib.sha256(repr(values.shape).encode())
    sha256.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


class Features:
    """Instance features (n, d) of one slide, read by runs of rows."""

    def __init__(self, array: ArrayReader) -> None:
        self._array = array
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])
        self.rows_per_chunk: int = array.rows_per_chunk
        self.type: FeatureType = "float16" if array.dtype.itemsize == 2 else "float32"

    def read(self, start: int, stop: int) -> FeatureArray:
        """Read rows ``start`` to ``stop`` (exclusive), shape (k, d), in the stored type.

        Raises:
            DamageError: a chunk of them is absent or not what was written.
        """
        return self._array.read(start, stop)
