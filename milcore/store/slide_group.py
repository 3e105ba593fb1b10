"""Zarr group of one slide: its patches, coords, thumbnail and instance features."""

import hashlib
import math
import re
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import FsspecStore, LocalStore

from milcore.config import MAX_ARRAY_GB, MAX_WIDTH
from milcore.errors import InputError, StoreError
from milcore.runtime import storage
from milcore.store.shards import ShardReader, write_rows
from milcore.store.slide_record import SlideRecord
from milcore.store.writer import write_group

FEATURE_CHUNK_MB = 32
# of a slide whose record names no arrays, as earlier versions wrote it
INGESTED_ARRAYS = ("patches", "coords", "tissue", "thumbnail")
_FEATURE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FeatureArray = npt.NDArray[np.float16] | npt.NDArray[np.float32]


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

    @cached_property
    def coords(self) -> npt.NDArray[np.int32]:
        """Corner (x, y) of every patch in level-0 px, shape (n, 2)."""
        return self._array("coords").astype(np.int32, copy=False)

    @cached_property
    def tissue(self) -> npt.NDArray[np.float32] | None:
        """Tissue fraction of every patch's area, shape (n,); None in an import."""
        return self._array("tissue").astype(np.float32, copy=False) if "tissue" in self._arrays else None

    @cached_property
    def instance_labels(self) -> npt.NDArray[np.int8] | None:
        """Label of every instance, shape (n,): 1 positive, 0 negative, -1 left out.

        None where an import has none. They are for localisation metrics only: nothing is trained on them.
        """
        return self._array("instance_labels") if "instance_labels" in self._arrays else None

    @property
    def thumbnail(self) -> npt.NDArray[np.uint8]:
        """Thumbnail of the whole slide, shape (h, w, 3)."""
        return self._array("thumbnail").astype(np.uint8, copy=False)

    @property
    def tissue_mask(self) -> npt.NDArray[np.bool_] | None:
        """True where there is tissue, shape (h, w); None where unknown.

        It covers the whole slide, at a scale of its own.
        """
        return self._array("tissue_mask").astype(bool) if "tissue_mask" in self._arrays else None

    def patches(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Read patches ``start`` to ``stop`` (exclusive), shape (k, p, p, 3)."""
        self._expect("patches")
        return self._shards.read(start, stop)

    def jpegs(self, start: int, stop: int) -> list[npt.NDArray[np.uint8]]:
        """Read patches ``start`` to ``stop`` (exclusive) as JPEG files.

        Raises:
            StoreError: they are stored in another codec.
        """
        self._expect("patches")
        if self.record.codec != "jpeg":
            raise StoreError(
                f"slide {self.slide_id!r}: expected patches stored as JPEG files, got codec {self.record.codec}; "
                "allowed: jpeg"
            )
        return self._shards.chunks(start, stop)

    def features(self, name: str) -> "Features":
        """Open the instance features of this name; no values are read.

        Raises:
            StoreError: they are absent or incomplete.
        """
        self.feature_attrs(name)
        return Features(self._open(f"features/{name}"))

    def feature_attrs(self, name: str) -> dict[str, Any]:
        """Attributes of the features: ``digest`` and those of the encoder or import.

        Raises:
            StoreError: they are absent or incomplete.
        """
        attrs = self._feature_attrs(name)
        if attrs is None:
            there = ", ".join(self.feature_names()) or "none"
            raise StoreError(f"slide {self.slide_id!r}: expected complete features, got no {name!r}; allowed: {there}")
        return attrs

    def has_features(self, name: str) -> bool:
        """True where there are complete features of this name."""
        return self._feature_attrs(name) is not None

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
        digest = hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()
        final_attrs = {**attrs, "digest": digest, "complete": True}
        if self._feature_attrs(name) == final_attrs:
            return
        uri = storage.join(self.uri, "features", name)
        before = storage.files(uri)
        storage.remove(storage.join(uri, "zarr.json"))
        write_group(storage.join(self.uri, "features"), {})
        rows = max(1, min(len(values), int(FEATURE_CHUNK_MB * 1e6 / (values.itemsize * values.shape[1]))))
        storage.remove_all(before - write_rows(uri, values, rows, final_attrs))

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
        """Refuse an array that the slide was imported without."""
        if name not in self._arrays:
            raise self._missing(name)

    def _missing(self, name: str) -> StoreError:
        there = ", ".join([*self._arrays, *(f"features/{feature}" for feature in self.feature_names())])
        return StoreError(f"slide {self.slide_id!r}: expected {name}, got an import without; allowed: {there}")

    def _array(self, name: str) -> npt.NDArray[Any]:
        self._expect(name)
        return np.asarray(self._open(name)[...])

    def _open(self, name: str) -> zarr.Array[Any]:
        """Open an array; its shape and chunks, by which memory is taken, are checked."""
        array = zarr.open_array(zarr_store(self.uri), path=name, mode="r")
        size_gb = max(math.prod(shape) for shape in (array.shape, array.chunks)) * array.dtype.itemsize / 1e9
        is_wide = name.startswith("features/") and (array.ndim != 2 or array.shape[1] > MAX_WIDTH)
        if size_gb > MAX_ARRAY_GB or is_wide:
            raise StoreError(
                f"slide {self.slide_id!r}: {name}: expected an array that milcore writes, got shape {array.shape} in "
                f"chunks {array.chunks}; allowed: {MAX_ARRAY_GB} GB, features {MAX_WIDTH:,} wide"
            )
        return array


class Features:
    """Instance features (n, d) of one slide, read by runs of rows."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])
        self.rows_per_chunk: int = array.chunks[0]

    def read(self, start: int, stop: int) -> FeatureArray:
        """Read rows ``start`` to ``stop`` (exclusive), shape (k, d), in the stored type."""
        return np.asarray(self._array[start:stop])


def zarr_store(uri: str) -> LocalStore | FsspecStore:
    """Zarr store at a URI, without a cache of listings.

    Other processes write too.
    """
    if storage.is_local(uri):
        return LocalStore(storage.absolute(uri))
    return FsspecStore.from_url(uri, storage_options={"use_listings_cache": False})
