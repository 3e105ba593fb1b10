"""Zarr v3 arrays without shards: features, coords, images.

A chunk is the bytes of its values, compressed or not, and their crc32c; plain zarr-python reads and checks the same
arrays. Every chunk is written, so an absent one is damage, but for zeros in stores of the first versions. Axis words:
n (row), d (column).
"""

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt

from milcore.config import MAX_ARRAY_GB
from milcore.errors import StoreError
from milcore.runtime import storage
from milcore.store.checksums import CODEC, Checksums, UInt8, checksum_attributes, checksum_bytes, crc32c
from milcore.store.disk_cache import DiskCache
from milcore.store.jpeg_codec import ZSTD_LEVEL, chunk_codecs, encode_patch
from milcore.store.metadata import (
    array_metadata_expected,
    metadata_uri,
    parse_array_metadata,
    read_due_metadata,
    write_metadata,
)

CHUNKS_AT_A_TIME = 8
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def array_metadata(
    shape: list[int], dtype: str, chunk: list[int], codecs: list[dict[str, Any]], attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """The metadata of a Zarr v3 array with a regular grid of chunks."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": dict(attributes),
    }


class WrittenArray(NamedTuple):
    """URIs of the objects of an array, and the bytes of its ``zarr.json``."""

    uris: set[str]
    metadata: bytes


def write_array(
    uri: str, array: npt.NDArray[Any], attributes: Mapping[str, Any], jpeg_quality: int | None = None
) -> WrittenArray:
    """Write an array as one chunk.

    Each object is written atomically and nothing is removed first, so a reader or a second writer of the same bytes
    never reads an incomplete one.

    Args:
        uri: of the array.
        array: values of a little-endian or byte type.
        attributes: of the array.
        jpeg_quality: 1 to 100, for an image (h, w, 3); None stores the values with zstd.
    """
    if jpeg_quality is None:
        codecs = [_LITTLE if array.itemsize > 1 else {"name": "bytes"}, chunk_codecs("zstd", 0)[1]]
        data = bytes(imagecodecs.zstd_encode(np.ascontiguousarray(array).tobytes(), level=ZSTD_LEVEL))
    else:
        codecs, data = chunk_codecs("jpeg", jpeg_quality), encode_patch(array, "jpeg", jpeg_quality)
    checksum = crc32c(data)
    shape, chunk = list(array.shape), [max(1, edge) for edge in array.shape]
    chunk_uri = storage.join(uri, "c", *("0" for _ in shape))
    storage.write_parts(chunk_uri, [data, checksum_bytes(checksum)])
    attributes = {**attributes, **checksum_attributes([checksum])}
    metadata = write_metadata(uri, array_metadata(shape, array.dtype.name, chunk, [*codecs, CODEC], attributes))
    return WrittenArray({chunk_uri, metadata_uri(uri)}, metadata)


class RowChunks:
    """Chunks of a table (n, d) as they are stored, and their checksums.

    Args:
        values: of a little-endian type.
        rows: rows per chunk.
    """

    def __init__(self, values: npt.NDArray[Any], rows: int) -> None:
        self._values, self._rows = values, rows
        self._checksums = [crc32c(self._data(chunk)) for chunk in range(-(-len(values) // rows))]
        self.attributes = checksum_attributes(self._checksums)

    def write(self, uri: str, attributes: Mapping[str, Any]) -> WrittenArray:
        """Write the chunks, then the metadata.

        Until the metadata is written the array does not exist for any reader.

        Args:
            uri: of the array; objects there are overwritten, not removed, so two writers of one table do no harm.
            attributes: of the array; the checksums are added.
        """
        chunk_uris = [_row_chunk_uri(uri, chunk, 2) for chunk in range(len(self._checksums))]
        for chunk, (chunk_uri, checksum) in enumerate(zip(chunk_uris, self._checksums, strict=True)):
            storage.write_parts(chunk_uri, [self._data(chunk), checksum_bytes(checksum)])
        shape, dtype = list(self._values.shape), self._values.dtype.name
        chunk_shape = [self._rows, self._values.shape[1]]
        attributes = {**attributes, **self.attributes}
        metadata = write_metadata(uri, array_metadata(shape, dtype, chunk_shape, [_LITTLE, CODEC], attributes))
        return WrittenArray({*chunk_uris, metadata_uri(uri)}, metadata)

    def _data(self, chunk: int) -> bytes:
        """Bytes of a chunk; the last one is filled up with zeros."""
        values = self._values[chunk * self._rows : (chunk + 1) * self._rows]
        return values.tobytes() + bytes((self._rows - len(values)) * self._values.strides[0])


class ArrayReader:
    """Reader of an array whose chunks divide its first axis alone.

    Every chunk that is read is checked.

    Args:
        uri: of the array.
        place: names the array in errors, such as ``slide 'S03': features/x``.
        remedy: command that makes the array again.
        data: bytes of its ``zarr.json``; None reads them.

    Raises:
        DamageError: its metadata is absent or damaged.
        StoreError: it is larger than what milcore writes.
    """

    def __init__(self, uri: str, place: str, remedy: str, data: bytes | None = None) -> None:
        self._uri = uri
        data = read_due_metadata(uri, place, remedy) if data is None else data
        metadata = parse_array_metadata(data, uri)
        # of the whole content: the metadata has the checksums of all chunks
        self._digest = hashlib.sha256(uri.encode() + b"\0" + data).hexdigest()
        with array_metadata_expected(uri):
            self.attributes = metadata["attributes"]
            self.shape: tuple[int, ...] = tuple(metadata["shape"])
            self._chunk_shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            self.dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
            self._codecs = [codec["name"] for codec in metadata["codecs"]]
            self.rows_per_chunk: int = self._chunk_shape[0]
            self._checksums = Checksums(metadata, place, remedy)
            # zarr-python, which wrote the arrays of the first versions, leaves a chunk of zeros out
            is_of_zarr = "storage_transformers" in metadata
            self._may_lack_zeros = is_of_zarr and self.dtype.kind in "iu" and 1 in (len(self.shape), self.shape[0])
            size_gb = max(map(math.prod, (self.shape, self._chunk_shape))) * self.dtype.itemsize / 1e9
        if size_gb > MAX_ARRAY_GB:
            raise StoreError(
                f"{place}: expected an array that milcore writes, got shape {self.shape} in chunks "
                f"{self._chunk_shape}; allowed: {MAX_ARRAY_GB} GB"
            )

    def read(self, start: int, stop: int, cache: DiskCache | None = None) -> npt.NDArray[Any]:
        """Read rows ``start`` to ``stop`` (exclusive, clipped to the array).

        Args:
            start: first row.
            stop: row after the last.
            cache: that keeps their chunks, where these have checksums; None: none.
        """
        start, stop = max(0, start), min(stop, self.shape[0])
        values = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)

        def fill(chunk: int) -> None:
            first = chunk * self.rows_per_chunk
            low, high = max(start, first), min(stop, first + self.rows_per_chunk)
            rows = self._read_chunk(chunk, cache)
            values[low - start : high - start] = 0 if rows is None else rows[low - first : high - first]

        chunks = range(start // self.rows_per_chunk, -(-stop // self.rows_per_chunk))
        if len(chunks) == 1:
            fill(chunks[0])
        elif chunks:
            with ThreadPoolExecutor(min(len(chunks), CHUNKS_AT_A_TIME)) as pool:
                list(pool.map(fill, chunks))
        return values

    def read_all(self) -> npt.NDArray[Any]:
        """Read the whole array."""
        return self.read(0, self.shape[0])

    def _read_chunk(self, chunk: int, cache: DiskCache | None) -> npt.NDArray[Any] | None:
        """Read and check a chunk; None where zeros were left out."""
        uri = _row_chunk_uri(self._uri, chunk, len(self.shape))
        try:
            data: Any = self._content(chunk, uri, cache)
        except FileNotFoundError:
            if self._may_lack_zeros:
                return None
            raise self._checksums.damage(uri, f"expected chunk {chunk}, got no object") from None
        try:
            if "milcore_jpeg" in self._codecs:
                return np.asarray(imagecodecs.jpeg8_decode(data)).reshape(self._chunk_shape)
            if "zstd" in self._codecs:
                data = imagecodecs.zstd_decode(data)
            return np.frombuffer(data, self.dtype).reshape(self._chunk_shape)
        except (ValueError, RuntimeError) as error:
            raise self._checksums.damage(
                uri, f"expected chunk {chunk} of shape {self._chunk_shape}, got {error}"
            ) from None

    def _content(self, chunk: int, uri: str, cache: DiskCache | None) -> UInt8:
        """Bytes of a chunk without their checksum, which is checked."""

        def check(data: UInt8) -> UInt8:
            return self._checksums.check(chunk, data, uri)

        if cache is None or not self._checksums.are_recorded:
            return check(np.frombuffer(storage.read_bytes(uri), np.uint8))
        return cache.read(f"{self._digest}-{chunk}", lambda: storage.read_bytes(uri), check)


def row_chunk_uris(uri: str, data: bytes) -> set[str]:
    """URIs of the chunks of an array whose chunks divide its first axis alone.

    Args:
        uri: of the array.
        data: bytes of its ``zarr.json``.

    Raises:
        DamageError: it is damaged.
    """
    metadata = parse_array_metadata(data, uri)
    with array_metadata_expected(uri):
        shape, rows = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        return {_row_chunk_uri(uri, chunk, len(shape)) for chunk in range(-(-shape[0] // rows))}


def _row_chunk_uri(uri: str, chunk: int, axes: int) -> str:
    return storage.join(uri, "c", str(chunk), *("0" for _ in range(axes - 1)))
