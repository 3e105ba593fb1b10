"""Zarr v3 arrays of a slide: sharded patches, small arrays, tables of features.

A shard is its chunks' bytes in a row, then an index of (offset, length) pairs and the index's crc32c (the Zarr v3
``sharding_indexed`` layout, index at the end). Writing it here keeps only one compressed shard in memory and calls
zarr-python for no patch; plain zarr-python reads it back. Not here: the layout of a slide's group (``store.py``), and
the codec of a chunk (``jpeg_codec.py``). Axis words: n (patch), p (patch edge in px).
"""

import hashlib
import os
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
import numpy.typing as npt

from milcore.config import MAX_INSTANCES_PER_SLIDE, MAX_PATCH_EDGE_PX, Codec
from milcore.errors import StoreError
from milcore.runtime import storage
from milcore.store.jpeg_codec import JPEG_CODECS, ZSTD_LEVEL, JpegCodec, UInt8, decode_into, encode_patch

SHARD_MB = 64
# raw bytes of an H&E patch divided by its stored bytes: sets how many patches make a shard of about SHARD_MB
COMPRESSION: dict[Codec, float] = {"jpeg": 5.0, "zstd": 2.0, "none": 1.0, "passthrough": 5.0}
_EMPTY = np.uint64(2**64 - 1)


def patches_per_shard(codec: Codec, edge: int) -> int:
    """Number of patches in a shard of about ``SHARD_MB`` MB compressed."""
    return max(1, int(SHARD_MB * 1e6 * COMPRESSION[codec] / (edge * edge * 3)))


class ShardWriter:
    """Writer of patches (p, p, 3) u1 as one sharded Zarr array.

    It holds one compressed shard in memory. ``uris`` are the objects written so far, ``count`` the patches added.

    Args:
        uri: of the array (its ``zarr.json`` and ``c/`` below).
        edge: p, in px.
        codec: codec of a chunk.
        quality: JPEG quality, 1 to 100.
    """

    def __init__(self, uri: str, edge: int, codec: Codec, quality: int) -> None:
        self.count = 0
        self._uri, self._edge, self._codec, self._quality = uri, edge, codec, quality
        self._capacity = patches_per_shard(codec, edge)
        self._chunks: list[bytes] = []
        self._shards = 0
        self.uris: set[str] = set()
        self._sha256 = hashlib.sha256()

    def append(self, patch: UInt8) -> None:
        """Add one patch."""
        self.append_chunk(encode_patch(patch, self._codec, self._quality))

    def append_chunk(self, data: bytes) -> None:
        """Add one patch that is already encoded in this writer's codec."""
        self._sha256.update(data)
        self._chunks.append(data)
        self.count += 1
        if len(self._chunks) == self._capacity:
            self._flush(self._capacity)

    def finish(self) -> str:
        """Write the last shard and the metadata; return the chunks' sha256.

        The digest is over the bytes of all chunks in order.

        Raises:
            StoreError: no patch was added.
        """
        if not self.count:
            raise StoreError(f"{self._uri}: expected patches, got no patch; quarantine a slide without patches")
        per_shard = min(self._capacity, self.count)
        if self._chunks:
            self._flush(per_shard)
        uri = storage.join(self._uri, "zarr.json")
        storage.write_json(uri, self._metadata(per_shard))
        self.uris.add(uri)
        return self._sha256.hexdigest()

    def _flush(self, per_shard: int) -> None:
        self._chunks.append(_index([len(chunk) for chunk in self._chunks], per_shard))
        uri = _shard_uri(self._uri, self._shards)
        storage.write_parts(uri, self._chunks)
        self.uris.add(uri)
        self._chunks.clear()
        self._shards += 1

    def _metadata(self, per_shard: int) -> dict[str, Any]:
        patch = [self._edge, self._edge, 3]
        sharding = {
            "chunk_shape": [1, *patch],
            "codecs": _chunk_codecs(self._codec, self._quality),
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        names = ["patch", "y", "x", "channel"]
        return _array_metadata([self.count, *patch], "uint8", [per_shard, *patch], codecs) | {"dimension_names": names}


def write_array(uri: str, array: npt.NDArray[Any], jpeg_quality: int | None = None) -> set[str]:
    """Write an array as one chunk; return the URIs of its two objects.

    Each object is written atomically and nothing is removed first, so a reader or a second writer of the same bytes
    never reads an incomplete one.

    Args:
        uri: of the array.
        array: values of a little-endian or byte type.
        jpeg_quality: 1 to 100, for an image (h, w, 3); None stores the values with zstd.
    """
    if jpeg_quality is None:
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        codecs = [little if array.itemsize > 1 else {"name": "bytes"}, _chunk_codecs("zstd", 0)[1]]
        data = bytes(imagecodecs.zstd_encode(np.ascontiguousarray(array).tobytes(), level=ZSTD_LEVEL))
    else:
        codecs, data = _chunk_codecs("jpeg", jpeg_quality), encode_patch(array, "jpeg", jpeg_quality)
    shape = list(array.shape)
    metadata = _array_metadata(shape, array.dtype.name, [max(1, edge) for edge in shape], codecs)
    chunk_uri = storage.join(uri, "c", *("0" for _ in shape))
    storage.write_bytes(chunk_uri, data)
    storage.write_json(storage.join(uri, "zarr.json"), metadata)
    return {chunk_uri, storage.join(uri, "zarr.json")}


def write_rows(uri: str, values: npt.NDArray[Any], rows: int, attributes: dict[str, Any]) -> set[str]:
    """Write a table (n, d) as raw chunks of rows; return its objects' URIs.

    The metadata is written last; until then the array does not exist for any reader.

    Args:
        uri: of the array; objects there are overwritten, not removed, so two writers of one table do no harm.
        values: of a little-endian type.
        rows: rows per chunk.
        attributes: of the array.
    """
    starts = {storage.join(uri, "c", str(number), "0"): number * rows for number in range(-(-len(values) // rows))}
    for chunk_uri, start in starts.items():
        chunk = values[start : start + rows]
        storage.write_bytes(chunk_uri, chunk.tobytes() + bytes((rows - len(chunk)) * chunk.strides[0]))
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    metadata = _array_metadata(list(values.shape), values.dtype.name, [rows, values.shape[1]], [little])
    storage.write_json(storage.join(uri, "zarr.json"), metadata | {"attributes": attributes})
    return {*starts, storage.join(uri, "zarr.json")}


class ShardReader:
    """Reader of runs of patches from an array of ``ShardWriter``.

    A run takes one range request per shard that it touches.

    Args:
        uri: of the array.
    """

    def __init__(self, uri: str) -> None:
        metadata = storage.read_json(storage.join(uri, "zarr.json"))
        self._is_local = storage.is_local(uri)
        self._uri = storage.absolute(uri)
        self._count, self._edge = metadata["shape"][:2]
        self._per_shard = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        if not (0 < self._edge <= MAX_PATCH_EDGE_PX and 0 < self._per_shard <= MAX_INSTANCES_PER_SLIDE):
            raise StoreError(f"{uri}: expected patches that milcore writes, got {self._per_shard} of {self._edge} px")
        names = [codec["name"] for codec in metadata["codecs"][0]["configuration"]["codecs"]]
        self._codec: Codec = "jpeg" if "milcore_jpeg" in names else "zstd" if "zstd" in names else "none"
        self._indexes: dict[int, npt.NDArray[np.uint64]] = {}

    def read(self, start: int, stop: int) -> UInt8:
        """Patches ``start`` to ``stop`` (exclusive, clipped to the array), shape (k, p, p, 3)."""
        start, stop = max(0, start), min(stop, self._count)
        patches = np.empty((max(0, stop - start), self._edge, self._edge, 3), np.uint8)
        for shard in range(start // self._per_shard, -(-stop // self._per_shard)):
            first = shard * self._per_shard
            low, high = max(start, first), min(stop, first + self._per_shard)
            self._read_run(shard, low - first, high - first, patches[low - start : high - start])
        return patches

    def chunks(self, start: int, stop: int) -> list[UInt8]:
        """Stored bytes of each patch from ``start`` to ``stop`` (exclusive, clipped to the array)."""
        start, stop = max(0, start), min(stop, self._count)
        chunks: list[UInt8] = []
        for shard in range(start // self._per_shard, -(-stop // self._per_shard)):
            first = shard * self._per_shard
            runs = self._index(shard)[max(start, first) - first : min(stop, first + self._per_shard) - first]
            chunks += self._read_chunks(shard, runs)
        return chunks

    def _read_run(self, shard: int, low: int, high: int, out: UInt8) -> None:
        runs = self._index(shard)[low:high]
        begin, end = int(runs[0, 0]), int(runs[-1].sum())
        if self._codec == "none" and end - begin == out.nbytes:
            self._read_into(shard, begin, out)
            return
        for patch, data in zip(out, self._read_chunks(shard, runs), strict=True):
            decode_into(data, self._codec, patch)

    def _read_chunks(self, shard: int, runs: npt.NDArray[np.uint64]) -> list[UInt8]:
        """Chunks at consecutive (offset, length) of a shard, by one range request."""
        begin = int(runs[0, 0])
        data = self._read_range(shard, begin, int(runs[-1].sum()))
        return [data[offset - begin : offset - begin + length] for offset, length in runs.tolist()]

    def _read_into(self, shard: int, begin: int, out: UInt8) -> None:
        """Read raw patches into ``out`` without a copy."""
        if self._is_local:
            _read_fully(_shard_uri(self._uri, shard), begin, out)
        else:
            out.reshape(-1)[:] = self._read_range(shard, begin, begin + out.nbytes)

    def _read_range(self, shard: int, begin: int, end: int) -> UInt8:
        if not self._is_local:
            return np.frombuffer(storage.read_range(_shard_uri(self._uri, shard), begin, end), np.uint8)
        data = np.empty(end - begin, np.uint8)
        _read_fully(_shard_uri(self._uri, shard), begin, data)
        return data

    def _index(self, shard: int) -> npt.NDArray[np.uint64]:
        if shard not in self._indexes:
            uri = _shard_uri(self._uri, shard)
            data = storage.read_range(uri, -(self._per_shard * 16 + 4), None)
            if _crc32c(data[:-4]) != data[-4:]:
                raise StoreError(f"shard {uri} is damaged: the checksum of its index differs; ingest the slide again")
            self._indexes[shard] = np.frombuffer(data[:-4], "<u8").reshape(-1, 2)
        return self._indexes[shard]


def _read_fully(path: str, begin: int, out: UInt8) -> None:
    """Fill ``out`` (contiguous) with the bytes of a local file from offset ``begin``."""
    file = os.open(path, os.O_RDONLY)
    try:
        flat, done = out.reshape(-1), 0
        while done < flat.size:
            count = os.preadv(file, [flat[done:].data], begin + done)
            if not count:
                raise StoreError(f"shard {path} ends early; ingest the slide again")
            done += count
    finally:
        os.close(file)


def _array_metadata(shape: list[int], dtype: str, chunk: list[int], codecs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
    }


def _chunk_codecs(codec: Codec, quality: int) -> list[dict[str, Any]]:
    if codec in JPEG_CODECS:
        return [dict(JpegCodec(quality).to_dict())]
    raw = {"name": "bytes"}
    return (
        [raw, {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}] if codec == "zstd" else [raw]
    )


def _index(lengths: list[int], per_shard: int) -> bytes:
    """Index of a shard: (offset, length) of every chunk, then its crc32c.

    All bits of an absent chunk are ones.
    """
    index = np.full((per_shard, 2), _EMPTY, "<u8")
    index[: len(lengths), 0] = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    index[: len(lengths), 1] = lengths
    data = index.tobytes()
    return data + _crc32c(data)


def _crc32c(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _shard_uri(uri: str, shard: int) -> str:
    return storage.join(uri, "c", str(shard), "0", "0", "0")
