"""Patches of a slide as one sharded Zarr v3 array.

A shard is its chunks' bytes in a row, each with its crc32c, then an index of (offset, length) pairs and the index's
crc32c (the Zarr v3 ``sharding_indexed`` layout, index at the end). Writing it here keeps only one compressed shard in
memory and calls zarr-python for no patch; plain zarr-python reads it back. Not here: the layout of a slide's group
(``store.py``), and the codec of a chunk (``jpeg_codec.py``). Axis words: n (patch), p (patch edge in px).
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from milcore.config import MAX_INSTANCES_PER_SLIDE, MAX_PATCH_EDGE_PX, Codec
from milcore.errors import StoreError
from milcore.runtime import storage
from milcore.store.arrays import array_metadata
from milcore.store.checksums import CHECKSUM_BYTES, CODEC, Checksums, checksum_attributes, checksum_bytes, crc32c
from milcore.store.jpeg_codec import UInt8, chunk_codecs, decode_into, encode_patch
from milcore.store.metadata import (
    array_metadata_expected,
    metadata_uri,
    parse_array_metadata,
    read_due_metadata,
    write_metadata,
)

SHARD_MB = 64
# raw bytes of an H&E patch divided by its stored bytes: sets how many patches make a shard of about SHARD_MB
COMPRESSION: dict[Codec, float] = {"jpeg": 5.0, "zstd": 2.0, "none": 1.0, "passthrough": 5.0}
_EMPTY = np.uint64(2**64 - 1)


def patches_per_shard(codec: Codec, edge: int) -> int:
    """Number of patches in a shard of about ``SHARD_MB`` MB compressed."""
    return max(1, int(SHARD_MB * 1e6 * COMPRESSION[codec] / (edge * edge * 3)))


class ShardWriter:
    """Writer of patches (p, p, 3) u1 as one sharded Zarr array.

    It holds one compressed shard in memory. ``uris`` are the objects written so far, ``count`` the patches added,
    ``metadata`` the bytes of the array's ``zarr.json`` once it is written.

    Args:
        uri: of the array (its ``zarr.json`` and ``c/`` below).
        edge: p, in px.
        codec: codec of a chunk.
        quality: JPEG quality, 1 to 100.
        attributes: of the array; the checksums are added.
    """

    def __init__(
        self, uri: str, edge: int, codec: Codec, quality: int, attributes: Mapping[str, Any] | None = None
    ) -> None:
        self.count = 0
        self.metadata = b""
        self._uri, self._edge, self._codec, self._quality = uri, edge, codec, quality
        self._attributes = attributes or {}
        self._capacity = patches_per_shard(codec, edge)
        self._chunks: list[bytes] = []
        self._checksums: list[int] = []
        self._shards = 0
        self.uris: set[str] = set()
        self._sha256 = hashlib.sha256()

    def append(self, patch: UInt8) -> None:
        """Add one patch."""
        self.append_chunk(encode_patch(patch, self._codec, self._quality))

    def append_chunk(self, data: bytes) -> None:
        """Add one patch that is already encoded in this writer's codec."""
        self._sha256.update(data)
        self._checksums.append(crc32c(data))
        self._chunks.append(data)
        self.count += 1
        if len(self._chunks) == self._capacity:
            self._flush(self._capacity)

    def finish(self) -> str:
        """Write the last shard and the metadata; return the chunks' sha256.

        The digest is over the bytes of all chunks in order, without their checksums.

        Raises:
            StoreError: no patch was added.
        """
        if not self.count:
            raise StoreError(f"{self._uri}: expected patches, got no patch; quarantine a slide without patches")
        per_shard = min(self._capacity, self.count)
        if self._chunks:
            self._flush(per_shard)
        self.metadata = write_metadata(self._uri, self._metadata(per_shard))
        self.uris.add(metadata_uri(self._uri))
        return self._sha256.hexdigest()

    def _flush(self, per_shard: int) -> None:
        checksums = self._checksums[-len(self._chunks) :]
        parts = [part for pair in zip(self._chunks, map(checksum_bytes, checksums), strict=True) for part in pair]
        parts.append(_index([len(chunk) + CHECKSUM_BYTES for chunk in self._chunks], per_shard))
        uri = _shard_uri(self._uri, self._shards)
        storage.write_parts(uri, parts)
        self.uris.add(uri)
        self._chunks.clear()
        self._shards += 1

    def _metadata(self, per_shard: int) -> dict[str, Any]:
        patch = [self._edge, self._edge, 3]
        sharding = {
            "chunk_shape": [1, *patch],
            "codecs": [*chunk_codecs(self._codec, self._quality), CODEC],
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, CODEC],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        names = ["patch", "y", "x", "channel"]
        attributes = {**self._attributes, **checksum_attributes(self._checksums)}
        metadata = array_metadata([self.count, *patch], "uint8", [per_shard, *patch], codecs, attributes)
        return metadata | {"dimension_names": names}


class ShardReader:
    """Reader of runs of patches from an array of ``ShardWriter``.

    A run takes one range request per shard that it touches; every patch that is read is checked.

    Args:
        uri: of the array.
        place: names the array in errors, such as ``slide 'S03': patches``.
        remedy: command that makes the array again.
        data: bytes of its ``zarr.json``; None reads them.

    Raises:
        DamageError: its metadata is absent or damaged.
    """

    def __init__(
        self, uri: str, place: str = "patches", remedy: str = "ingest the slide again", data: bytes | None = None
    ) -> None:
        metadata = parse_array_metadata(read_due_metadata(uri, place, remedy) if data is None else data, uri)
        self._is_local = storage.is_local(uri)
        self._uri = storage.absolute(uri)
        with array_metadata_expected(uri):
            self.attributes = metadata["attributes"]
            self._count, self._edge = metadata["shape"][:2]
            self._per_shard = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
            names = [codec["name"] for codec in metadata["codecs"][0]["configuration"]["codecs"]]
            self._checksums = Checksums(metadata, place, remedy)
        if not (0 < self._edge <= MAX_PATCH_EDGE_PX and 0 < self._per_shard <= MAX_INSTANCES_PER_SLIDE):
            raise StoreError(f"{uri}: expected patches that milcore writes, got {self._per_shard} of {self._edge} px")
        self._codec: Codec = "jpeg" if "milcore_jpeg" in names else "zstd" if "zstd" in names else "none"
        self._indexes: dict[int, npt.NDArray[np.uint64]] = {}

    def __len__(self) -> int:
        return int(self._count)

    def read(self, start: int, stop: int) -> UInt8:
        """Patches ``start`` to ``stop`` (exclusive, clipped to the array), shape (k, p, p, 3)."""
        chunks = self.chunks(start, stop)
        patches = np.empty((len(chunks), self._edge, self._edge, 3), np.uint8)
        for number, (patch, chunk) in enumerate(zip(patches, chunks, strict=True), start=max(0, start)):
            try:
                decode_into(chunk, self._codec, patch)
            except (StoreError, ValueError, RuntimeError) as error:
                uri = _shard_uri(self._uri, number // self._per_shard)
                raise self._checksums.damage(uri, f"patch {number} cannot be decoded ({error})") from None
        return patches

    def chunks(self, start: int, stop: int) -> list[UInt8]:
        """Stored bytes of each patch from ``start`` to ``stop`` (exclusive, clipped to the array)."""
        start, stop = max(0, start), min(stop, self._count)
        chunks: list[UInt8] = []
        for shard in range(start // self._per_shard, -(-stop // self._per_shard)):
            first = shard * self._per_shard
            chunks += self._read_chunks(shard, max(start, first) - first, min(stop, first + self._per_shard) - first)
        return chunks

    def _read_chunks(self, shard: int, low: int, high: int) -> list[UInt8]:
        """Chunks ``low`` to ``high`` of a shard, by one range request."""
        uri, runs = _shard_uri(self._uri, shard), self._index(shard)[low:high]
        if (runs == _EMPTY).any():
            raise self._checksums.damage(uri, f"expected patches {low} to {high - 1} of the shard, got none of some")
        begin, end = int(runs[0, 0]), int(runs[-1].sum())
        data = self._read_range(uri, begin, end)
        stored = [data[offset - begin : offset - begin + length] for offset, length in runs.tolist()]
        return [
            self._checksums.check(shard * self._per_shard + number, chunk, uri)
            for number, chunk in enumerate(stored, start=low)
        ]

    def _read_range(self, uri: str, begin: int, end: int | None) -> UInt8:
        try:
            if not self._is_local:
                return np.frombuffer(storage.read_range(uri, begin, end), np.uint8)
            return _read_local(uri, begin, end)
        except FileNotFoundError:
            raise self._checksums.damage(uri, "expected a shard, got no object") from None

    def _index(self, shard: int) -> npt.NDArray[np.uint64]:
        if shard not in self._indexes:
            uri, length = _shard_uri(self._uri, shard), self._per_shard * 16 + CHECKSUM_BYTES
            data = self._read_range(uri, -length, None)
            if (
                len(data) != length
                or checksum_bytes(crc32c(data[:-CHECKSUM_BYTES])) != data[-CHECKSUM_BYTES:].tobytes()
            ):
                raise self._checksums.damage(uri, "expected the index of the shard, got other bytes (crc32c differs)")
            self._indexes[shard] = np.frombuffer(data[:-CHECKSUM_BYTES], "<u8").reshape(-1, 2)
        return self._indexes[shard]


def _read_local(path: str, begin: int, end: int | None) -> UInt8:
    """Bytes ``begin`` to ``end`` of a local file, fewer where it ends early.

    A negative ``begin`` counts from the end.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        begin, end = max(0, size + begin) if begin < 0 else begin, size if end is None else min(end, size)
        data, done = np.empty(max(0, end - begin), np.uint8), 0
        while done < data.size:
            count = os.preadv(file, [data[done:].data], begin + done)
            if not count:
                return data[:done]
            done += count
        return data
    finally:
        os.close(file)


def _index(lengths: list[int], per_shard: int) -> bytes:
    """Index of a shard: (offset, length) of every chunk, then its crc32c.

    All bits of an absent chunk are ones.
    """
    index = np.full((per_shard, 2), _EMPTY, "<u8")
    index[: len(lengths), 0] = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    index[: len(lengths), 1] = lengths
    data = index.tobytes()
    return data + checksum_bytes(crc32c(data))


def _shard_uri(uri: str, shard: int) -> str:
    return storage.join(uri, "c", str(shard), "0", "0", "0")
