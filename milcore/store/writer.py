"""Writer of one slide's group, safe against kills and second writers.

The group is marked as begun first and ``complete`` last, and each object is written atomically; nothing is removed
before that, so two writers of one slide, whose bytes are equal, do each other no harm. Objects of an earlier ingestion
are removed at the end, as far as they existed at the beginning; features of equal patches stay.
"""

import hashlib
import posixpath
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from milcore.config import Codec
from milcore.errors import DamageError, StoreError
from milcore.runtime import storage
from milcore.store.arrays import WrittenArray, write_array
from milcore.store.group_arrays import stored_metadata
from milcore.store.metadata import array_attributes, metadata_uri, parse_array_metadata, write_group
from milcore.store.shards import ShardWriter
from milcore.store.slide_record import SlideRecord, TileCounts
from milcore.store.slide_row import FEATURES, SlideRow

ROW_TYPES = {"coords": np.int32, "instance_labels": np.int8, "instance_classes": np.int32}

RowName = Literal["coords", "instance_labels", "instance_classes"]


class SlideWriter:
    """Writer of one slide's group, patch by patch; a context that completes the group.

    Args:
        uri: of the group.
        record: of the slide, as far as it is known beforehand.
        patch_size: p, in px; None for a slide without pixels.
        codec: codec of a patch.
        quality: JPEG quality, 1 to 100.
        is_new: the slide had no folder before, so that nothing in it is listed or removed.
    """

    def __init__(  # noqa: PLR0913 - a slide, its codec, and what is there
        self,
        uri: str,
        record: SlideRecord,
        patch_size: int | None,
        codec: Codec,
        quality: int,
        *,
        is_new: bool = False,
    ) -> None:
        self._record = record
        self._uri = uri
        self._before = set() if is_new else storage.files(uri)
        self._metadata: dict[str, bytes] = {}
        self._group = b""
        write_group(uri, {"begun": record.to_attrs(), "complete": False})
        self._written = {metadata_uri(uri)}
        self._shards: ShardWriter | None = None
        if patch_size is not None:
            self._record = replace(record, patch_size=patch_size, codec=codec)
            attributes = array_attributes(record.slide_id, "patches")
            self._shards = ShardWriter(storage.join(uri, "patches"), patch_size, codec, quality, attributes)
        self._coords: list[tuple[int, int]] = []
        self._tissue: list[float] = []
        self._rows: dict[str, npt.NDArray[Any]] = {}
        self._quality = quality

    @property
    def row(self) -> SlideRow:
        """Row of the complete slide for the store's catalogue."""
        return SlideRow.of(self._record.slide_id, self._group, self._metadata)

    def append(self, patch: npt.NDArray[np.uint8], x: int, y: int, tissue: float) -> None:
        """Add a patch (p, p, 3), its level-0 corner and tissue fraction."""
        self.append_patch(patch)
        self._add_tile(x, y, tissue)

    def append_chunk(self, data: bytes, x: int, y: int, tissue: float) -> None:
        """Add a patch that is already encoded in the codec; else as ``append``."""
        self._patches().append_chunk(data)
        self._add_tile(x, y, tissue)

    def append_patch(self, patch: npt.NDArray[np.uint8]) -> None:
        """Add a patch (p, p, 3) without coords.

        ``write_rows`` takes the coords of all patches, if known.
        """
        self._patches().append(patch)

    def write_rows(self, name: RowName, values: npt.NDArray[np.integer[Any]]) -> None:
        """Add a value, or the corner, of every instance; stored when the context ends."""
        self._rows[name] = values.astype(ROW_TYPES[name])

    def write_counts(self, counts: TileCounts) -> None:
        """Add the counts of the slide's tiles; stored when the context ends."""
        self._record = replace(self._record, counts=counts)

    def write_thumbnail(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Write the slide's thumbnail (h, w, 3)."""
        self._write_array("thumbnail", pixels, self._quality)

    def write_mask(self, mask: npt.NDArray[np.bool_]) -> None:
        """Write the tissue mask (h, w), True for tissue, at any scale."""
        self._write_array("tissue_mask", mask.astype(np.uint8))

    def _write_array(self, name: str, array: npt.NDArray[Any], jpeg_quality: int | None = None) -> None:
        attributes = array_attributes(self._record.slide_id, name)
        written = write_array(storage.join(self._uri, name), array, attributes, jpeg_quality)
        self._written |= written.uris
        self._metadata[name] = written.metadata

    def keep_features(self, name: str, features: WrittenArray) -> None:
        """Keep features that were written to the group while this writer was open."""
        self._written |= {metadata_uri(storage.join(self._uri, "features")), *features.uris}
        self._metadata[f"{FEATURES}{name}"] = features.metadata

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._complete()

    def _patches(self) -> ShardWriter:
        if self._shards is None:
            raise StoreError(f"{self._uri}: expected a writer with a patch size, got none; give it one")
        return self._shards

    def _add_tile(self, x: int, y: int, tissue: float) -> None:
        self._coords.append((x, y))
        self._tissue.append(tissue)

    def _complete(self) -> None:
        rows = dict(self._rows)
        if self._coords:
            rows |= {"coords": np.array(self._coords, np.int32), "tissue": np.array(self._tissue, np.float32)}
        record = self._finish_patches(rows.get("coords", np.empty((0, 2), np.int32)))
        for name, array in rows.items():
            self._write_array(name, array)
        storage.remove_all(self._before - self._written - self._features_of(record.patches_digest))
        arrays = sorted(name for name in self._metadata if not name.startswith(FEATURES))
        record = replace(record, status="ok", arrays=tuple(arrays))
        self._group = write_group(self._uri, record.to_complete_attrs())

    def _features_of(self, digest: str | None) -> set[str]:
        """URIs of what there is of features of patches with this digest."""
        features_uri = storage.join(self._uri, "features")
        kept: set[str] = set()
        for file in self._before:
            uri = posixpath.dirname(file)
            if digest is None or file != metadata_uri(uri) or posixpath.dirname(uri) != features_uri:
                continue
            data = stored_metadata(uri)
            if data is not None and _digest_of_patches(data, uri) == digest:
                kept |= {metadata_uri(features_uri), *(other for other in self._before if other.startswith(f"{uri}/"))}
                self._metadata[f"{FEATURES}{posixpath.basename(uri)}"] = data
        return kept

    def _finish_patches(self, coords: npt.NDArray[np.int32]) -> SlideRecord:
        """Write the last shard; the record with the patches' count and digest."""
        if self._shards is None:
            return self._record
        chunks = self._shards.finish()
        self._written |= self._shards.uris
        self._metadata["patches"] = self._shards.metadata
        return replace(self._record, patches=self._shards.count, patches_digest=patches_digest(chunks, coords))


def _digest_of_patches(metadata: bytes, uri: str) -> str | None:
    """Digest of the patches that features were made of; None where it is unknown."""
    try:
        digest = parse_array_metadata(metadata, uri)["attributes"].get("patches_digest")
    except DamageError:
        return None
    return None if digest is None else str(digest)


def patches_digest(chunks_sha256: str, coords: npt.NDArray[np.int32]) -> str:
    """Digest of a slide's patches.

    Args:
        chunks_sha256: hex digest of the bytes of all chunks in order, without their checksums.
        coords: of the patches, shape (n, 2); no rows where they are unknown.
    """
    return hashlib.sha256(chunks_sha256.encode() + coords.astype("<i4").tobytes()).hexdigest()
