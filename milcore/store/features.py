"""Instance features of one slide: an array (n, d) with a row per patch.

Axis words: n (patch), d (feature).
"""

import hashlib
import posixpath
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from milcore.config import MAX_WIDTH
from milcore.errors import DamageError, InputError
from milcore.runtime import storage
from milcore.store.arrays import ArrayReader, RowChunks, WrittenArray, row_chunk_uris
from milcore.store.checksums import ATTRIBUTE as CHECKSUMS
from milcore.store.disk_cache import DiskCache
from milcore.store.feature_type import FeatureArray, FeatureType
from milcore.store.group_arrays import stored_metadata
from milcore.store.metadata import metadata_uri, parse_array_metadata, write_group

FEATURE_CHUNK_MB = 32
_FEATURE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


# reads values of an array by its name; a row of the catalogue that is out of date is made anew first
ArrayAccess = Callable[[str, Callable[[ArrayReader], npt.NDArray[Any]]], npt.NDArray[Any]]


class Features:
    """Instance features (n, d) of one slide, read by runs of rows.

    Args:
        read: reads values of the array.
        name: of the array, ``features/<name>``.
        array: shape and type of the array.
        cache: of its chunks on this machine's disk; None: none.
    """

    def __init__(self, read: ArrayAccess, name: str, array: ArrayReader, cache: DiskCache | None = None) -> None:
        self._read, self._name, self._cache = read, name, cache
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])
        self.rows_per_chunk: int = array.rows_per_chunk
        self.type: FeatureType = "float16" if array.dtype.itemsize == 2 else "float32"

    def read(self, start: int, stop: int) -> FeatureArray:
        """Read rows ``start`` to ``stop`` (exclusive), shape (k, d), in the stored type.

        Raises:
            DamageError: a chunk of them is absent or not what was written.
            StoreError: another program has changed them since the catalogue was written.
        """
        return self._read(self._name, lambda array: array.read(start, stop, self._cache))


def features_digest(values: npt.NDArray[Any]) -> str:
    """Sha256 of the shape and values of features."""
    sha256 = hashlib.sha256(repr(values.shape).encode())
    sha256.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


def check_features(slide_id: str, instances: int, name: str, array: FeatureArray) -> None:
    """Check the name, shape and type of features before they are written.

    Raises:
        InputError: the name cannot name a folder, the type is another, or the rows are not one per patch.
    """
    if not _FEATURE_NAME.fullmatch(name):
        raise InputError(
            f"name: expected a name for features, got {name!r}; allowed: letters, digits, '.', '_' and '-'"
        )
    if array.ndim != 2 or len(array) != instances or array.shape[1] > MAX_WIDTH:
        raise InputError(
            f"features of slide {slide_id!r}: expected a row per patch, got shape {array.shape} for "
            f"{instances} patches; allowed: ({instances}, features), at most {MAX_WIDTH:,} features"
        )
    if array.dtype not in (np.float16, np.float32):
        raise InputError(
            f"features of slide {slide_id!r}: expected floating-point numbers, got {array.dtype}; allowed: "
            "float16, float32"
        )


def write_features(uri: str, array: FeatureArray, attrs: dict[str, Any], *, is_new: bool) -> WrittenArray:
    """Write instance features; readers find them after the last object is written.

    Equal features with equal attributes are not written again, so a second writer does no harm.

    Args:
        uri: of the array.
        array: shape (n, d), as ``check_features`` asks for.
        attrs: slide and name, encoder, weights digest, transform, or the source of an import.
        is_new: the slide had no folder before, so there is nothing to compare with or to remove.
    """
    values = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    rows = max(1, min(len(values), int(FEATURE_CHUNK_MB * 1e6 / (values.itemsize * values.shape[1]))))
    chunks = RowChunks(values, rows)
    final_attrs = {**attrs, "digest": features_digest(values), "complete": True, **chunks.attributes}
    before = None if is_new else stored_metadata(uri)
    if before is not None:
        if _have_attrs(uri, before, final_attrs):
            return WrittenArray({*row_chunk_uris(uri, before), metadata_uri(uri)}, before)
        storage.remove(metadata_uri(uri))
    write_group(posixpath.dirname(uri), {})
    written = chunks.write(uri, final_attrs)
    storage.remove_all(_chunk_uris(uri, before) - written.uris)
    return written


def _have_attrs(uri: str, stored: bytes, attrs: dict[str, Any]) -> bool:
    """True where stored features have these attributes, in chunks of any length."""
    try:
        before = parse_array_metadata(stored, uri)["attributes"]
    except DamageError:
        return False  # they are written again
    return bool(before | {CHECKSUMS: attrs[CHECKSUMS]} == attrs and CHECKSUMS in before)


def _chunk_uris(uri: str, stored: bytes | None) -> set[str]:
    """URIs of the chunks of earlier features; none where their metadata is damaged."""
    try:
        return set() if stored is None else row_chunk_uris(uri, stored)
    except DamageError:
        return set()
