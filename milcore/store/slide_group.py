"""Zarr group of one slide: its patches, coords, thumbnail and instance features."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from milcore.config import MAX_WIDTH, POOLING_SCOPES
from milcore.errors import DamageError, StoreError
from milcore.runtime import storage
from milcore.store.arrays import ArrayReader, WrittenArray
from milcore.store.disk_cache import DiskCache
from milcore.store.feature_type import FeatureArray, FeatureType
from milcore.store.features import Features, check_features, write_features
from milcore.store.group_arrays import GroupArrays, RenewRow, stored_metadata
from milcore.store.metadata import array_attributes, parse_array_metadata
from milcore.store.shards import ShardReader
from milcore.store.slide_record import SlideRecord
from milcore.store.slide_row import FEATURES, INGESTED_ARRAYS, SlideRow

T = TypeVar("T")


class StoredFeatures(NamedTuple):
    """Complete features of a slide.

    Args:
        attrs: attributes, as ``SlideGroup.feature_attrs``.
        metadata: bytes of their ``zarr.json``.
    """

    attrs: dict[str, Any]
    metadata: bytes


def check_coords(slides: Iterable["SlideGroup"]) -> None:
    """Check that slides have coords, for a pooling that reads the places of instances.

    Raises:
        StoreError: slides without.
    """
    lacking = sorted(slide.slide_id for slide in slides if not slide.has_coords)
    if lacking:
        readers = ", ".join(name for name, scope in POOLING_SCOPES.items() if scope.is_placed)
        raise StoreError(
            f"pooling: expected slides with coords, which {readers} reads, got {len(lacking)} without "
            f"({', '.join(lacking[:5])} …); allowed: stores of slides, or imports with coords; take another pooling"
        )


class SlideGroup:
    """A complete slide of the store; its arrays are read on access.

    Args:
        uri: of the group.
        record: of the slide, complete and not in quarantine.
        row: of the slide in the catalogue; None reads the metadata of arrays from the group.
        renew: makes that row anew from the group.
    """

    def __init__(
        self, uri: str, record: SlideRecord, row: SlideRow | None = None, renew: RenewRow | None = None
    ) -> None:
        self.uri = uri
        self._metadata, self._renew = GroupArrays(uri, record.slide_id, row, renew), renew
        self._readers: dict[str, ArrayReader] = {}
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
        return self._read_shards(lambda shards: shards.read(start, stop))

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
        return self._read_shards(lambda shards: shards.chunks(start, stop))

    def array(self, name: str) -> npt.NDArray[Any]:
        """Read one of ``array_names`` but patches."""
        self._expect(name)
        return self.read(name, ArrayReader.read_all)

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the arrays that the slide has, without features."""
        return tuple(self._arrays)

    def features(self, name: str, cache: DiskCache | None = None) -> "Features":
        """Open the instance features of this name; no values are read.

        Args:
            name: of the features.
            cache: that keeps what is read of them on this machine's disk; None: none.

        Raises:
            StoreError: they are absent or incomplete.
        """
        self.feature_attrs(name)
        return Features(self.read, f"{FEATURES}{name}", self._reader(f"{FEATURES}{name}"), cache)

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

    def feature_type(self, name: str, stored: StoredFeatures | None = None) -> FeatureType:
        """Type in which the features of this name are stored.

        Args:
            name: of the features.
            stored: what ``stored_features`` read of them; None: as ``features``.
        """
        if stored is None:
            return self.features(name).type
        array = f"{FEATURES}{name}"
        return Features(self.read, array, self._open_array(array, stored.metadata)).type

    def has_features(self, name: str) -> bool:
        """True where there are complete features of this name."""
        return self.stored_feature_attrs(name) is not None

    def stored_feature_attrs(self, name: str) -> dict[str, Any] | None:
        """Attributes of the features, as ``feature_attrs``; None where they are absent or incomplete.

        Raises:
            DamageError: they are damaged, or those of another slide.
        """
        data = self._metadata.stored(f"{FEATURES}{name}")
        return None if data is None else self._feature_attrs(f"{FEATURES}{name}", data)

    def stored_features(self, name: str) -> StoredFeatures | None:
        """Features as the group has them, whatever the catalogue says, by one request.

        None where they are absent or incomplete.

        Raises:
            DamageError: they are damaged, or those of another slide.
        """
        array = f"{FEATURES}{name}"
        data = stored_metadata(self._metadata.uri(array))
        attrs = None if data is None else self._feature_attrs(array, data)
        return None if data is None or attrs is None else StoredFeatures(attrs, data)

    def _feature_attrs(self, array: str, data: bytes) -> dict[str, Any] | None:
        """Attributes of features out of their ``zarr.json``; None where they are incomplete."""
        attrs: dict[str, Any] = parse_array_metadata(data, self._metadata.uri(array))["attributes"]
        self._check_owner(array, attrs)
        return attrs if attrs.get("complete") else None

    def feature_names(self) -> list[str]:
        """Names of the complete features."""
        return [name for name in self._metadata.feature_names() if self.has_features(name)]

    def write_features(self, name: str, array: FeatureArray, attrs: dict[str, Any]) -> None:
        """Write instance features, and the slide's row of the catalogue.

        Readers find them after the last object is written. Equal features with equal attributes are not written again,
        so a second writer does no harm.

        Args:
            name: of the features: letters, digits, '.', '_' and '-'.
            array: shape (n, d), one row per patch; float16 or float32, stored as it is.
            attrs: encoder, weights digest, transform, or the source of an import.

        Raises:
            InputError: the name cannot name a folder, the type is another, or the rows are not one per patch.
        """
        self.write_feature_array(name, array, attrs)
        if self._renew is not None:
            self._renew(self.slide_id)

    def write_feature_array(
        self, name: str, array: FeatureArray, attrs: dict[str, Any], *, is_new: bool = False
    ) -> WrittenArray:
        """Write instance features as ``write_features``, for a writer that keeps the catalogue itself.

        Args:
            name: of the features.
            array: shape (n, d).
            attrs: of the features.
            is_new: the slide had no folder before, so there is nothing to compare with or to remove.
        """
        check_features(self.slide_id, len(self), name, array)
        array_name = f"{FEATURES}{name}"
        attrs = {**attrs, **array_attributes(self.slide_id, array_name)}
        written = write_features(self._metadata.uri(array_name), array, attrs, is_new=is_new)
        self._readers.pop(array_name, None)
        self._metadata.replace(array_name, written.metadata)
        return written

    def read(self, name: str, values: Callable[[ArrayReader], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Values of an array without shards.

        A row of the catalogue that is out of date is made anew first.

        Args:
            name: of the array.
            values: reads them.

        Raises:
            DamageError: they are absent or not what was written.
            StoreError: another program has changed the slide since the catalogue was written.
        """
        try:
            return values(self._reader(name))
        except DamageError:
            if not self._metadata.has_changed(name):
                raise
            self._readers.pop(name, None)
            return values(self._reader(name))

    def _read_shards(self, values: Callable[[ShardReader], T]) -> T:
        """Values of the patches, as ``read`` of other arrays."""
        self._expect("patches")
        try:
            return values(self._shards)
        except DamageError:
            if not self._metadata.has_changed("patches"):
                raise
            del self._shards
            return values(self._shards)

    @cached_property
    def _shards(self) -> ShardReader:
        uri, place = self._metadata.uri("patches"), f"slide {self.slide_id!r}: patches"
        remedy = self._remedy(uri)
        reader = ShardReader(uri, place, remedy, self._metadata.due("patches", place, remedy))
        self._check_owner("patches", reader.attributes)
        return reader

    def _reader(self, name: str) -> ArrayReader:
        if name not in self._readers:
            self._readers[name] = self._open_array(name)
        return self._readers[name]

    def _open_array(self, name: str, data: bytes | None = None) -> ArrayReader:
        """Open an array by its ``zarr.json``.

        None takes that of the catalogue, or reads it.
        """
        uri, place = self._metadata.uri(name), f"slide {self.slide_id!r}: {name}"
        remedy = self._remedy(uri)
        reader = ArrayReader(uri, place, remedy, data or self._metadata.due(name, place, remedy))
        self._check_owner(name, reader.attributes)
        if name.startswith(FEATURES) and (len(reader.shape) != 2 or reader.shape[1] > MAX_WIDTH):
            raise StoreError(
                f"slide {self.slide_id!r}: {name}: expected features, got shape {reader.shape}; allowed: (instances, "
                f"features), {MAX_WIDTH:,} features at most"
            )
        return reader

    def _remedy(self, uri: str) -> str:
        """The way to make an array again."""
        if uri.startswith(storage.join(self.uri, FEATURES)):
            return f"remove {uri} and run milcore encode or milcore import again"
        return f"remove {self.uri} and run milcore ingest or milcore import again"

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
