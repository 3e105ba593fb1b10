"""Shards: what our writer writes, plain zarr-python reads."""

import base64
import hashlib
import io
import json
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from PIL import Image

from milcore.config import Codec
from milcore.errors import DamageError, StoreError
from milcore.store import shards
from milcore.store.jpeg_codec import JpegCodec, decode_into, encode_patch
from milcore.store.shards import ShardReader, ShardWriter


def _smooth_patches(count: int, edge: int) -> np.ndarray:
    """Gradients that differ from patch to patch, so that a swapped patch is seen even through JPEG."""
    y, x = np.mgrid[:edge, :edge]
    planes = [np.stack([x * 3 + 20 * i, y * 3 + 10 * i, np.full_like(x, 100 + 15 * i)], -1) for i in range(count)]
    return np.clip(np.stack(planes), 0, 255).astype(np.uint8)


def _write(uri: Path, patches: np.ndarray, codec: Codec, monkeypatch: pytest.MonkeyPatch, per_shard: int) -> str:
    edge = patches.shape[1]
    monkeypatch.setattr(shards, "SHARD_MB", per_shard * edge * edge * 3 / shards.COMPRESSION[codec] / 1e6 * 1.001)
    writer = ShardWriter(str(uri), edge, codec, 90)
    for patch in patches:
        writer.append(patch)
    return writer.finish()


@pytest.mark.parametrize("codec", ["jpeg", "zstd", "none"])
@pytest.mark.parametrize("per_shard", [1, 3, 4, 100])
def test_zarr_reads_back_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Codec, per_shard: int
) -> None:
    patches = _smooth_patches(8, 32)
    _write(tmp_path / "a", patches, codec, monkeypatch, per_shard)
    array = zarr.open_array(tmp_path / "a", mode="r")
    assert array.shape == (8, 32, 32, 3)
    tolerance = 4 if codec == "jpeg" else 0
    assert np.abs(array[:].astype(int) - patches).max() <= tolerance
    assert np.abs(array[5].astype(int) - patches[5]).max() <= tolerance
    np.testing.assert_array_equal(ShardReader(str(tmp_path / "a")).read(0, 8), array[:])


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (2, 5), (3, 3), (6, 99), (0, 7), (9, 12)])
def test_any_run_of_patches_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, stop: int) -> None:
    patches = _smooth_patches(7, 16)
    _write(tmp_path / "a", patches, "zstd", monkeypatch, 3)
    np.testing.assert_array_equal(ShardReader(str(tmp_path / "a")).read(start, stop), patches[start:stop])


def test_no_patches_make_no_shard(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="got no patch"):
        ShardWriter(str(tmp_path / "a"), 16, "none", 90).finish()


def _checked(chunk: np.ndarray) -> bytes:
    """A raw chunk as it is stored: its bytes, then their crc32c, little-endian."""
    return chunk.tobytes() + struct.pack("<I", google_crc32c.value(chunk.tobytes()))


def test_a_shard_is_checked_chunks_then_a_checked_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two raw chunks of 16 x 16 x 3 + 4 = 772 bytes in a shard for three: rows (0, 772), (772, 772), (max, max)."""
    patches = _smooth_patches(5, 16)
    _write(tmp_path / "a", patches, "none", monkeypatch, 3)
    index = struct.pack("<6Q", 0, 772, 772, 772, 2**64 - 1, 2**64 - 1)
    expected = _checked(patches[3]) + _checked(patches[4]) + index + struct.pack("<I", google_crc32c.value(index))
    assert (tmp_path / "a/c/1/0/0/0").read_bytes() == expected
    attributes = json.loads((tmp_path / "a/zarr.json").read_text())["attributes"]
    checksums = [google_crc32c.value(patch.tobytes()) for patch in patches]
    assert struct.unpack("<5I", base64.b64decode(attributes["crc32c"])) == tuple(checksums)


def test_each_chunk_is_a_jpeg_file_444_and_four_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = _smooth_patches(2, 32)
    _write(tmp_path / "a", patches, "jpeg", monkeypatch, 2)
    shard = (tmp_path / "a/c/0/0/0/0").read_bytes()
    offset, length = struct.unpack("<2Q", shard[-20:-4])
    image = Image.open(io.BytesIO(shard[offset : offset + length - 4]))
    assert (image.format, image.size) == ("JPEG", (32, 32))
    assert [component[1] for component in image.layer] == [1, 1, 1]
    assert np.abs(np.asarray(image).astype(int) - patches[1]).max() <= 4
    assert ShardReader(str(tmp_path / "a")).chunks(1, 2)[0].tobytes() == shard[offset : offset + length - 4]


def test_the_digest_is_of_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = _smooth_patches(4, 16)
    one = _write(tmp_path / "a", patches, "none", monkeypatch, 2)
    assert one == _write(tmp_path / "b", patches, "none", monkeypatch, 3)
    assert one != _write(tmp_path / "c", patches[::-1], "none", monkeypatch, 3)
    assert one == hashlib.sha256(patches.tobytes()).hexdigest()


def test_a_damaged_index_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "a", _smooth_patches(2, 16), "none", monkeypatch, 2)
    shard = tmp_path / "a/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(DamageError, match="expected the index of the shard"):
        ShardReader(str(tmp_path / "a")).read(0, 1)


@pytest.mark.parametrize("codec", ["jpeg", "zstd", "none"])
def test_shards_and_patches_in_each_other_s_place_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    """Raw chunks are equally long, so that the indexes of full shards are equal."""
    patches = _smooth_patches(4, 16)
    _write(tmp_path / "a", patches, codec, monkeypatch, 2)
    one, two = tmp_path / "a/c/0/0/0/0", tmp_path / "a/c/1/0/0/0"
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    with pytest.raises(DamageError, match=r"expected chunk 1 as it was written.*crc32c differs"):
        ShardReader(str(tmp_path / "a")).read(1, 2)


def test_zarr_writes_through_the_jpeg_codec_by_its_entry_point(tmp_path: Path) -> None:
    picture = _smooth_patches(1, 64)[0]
    array = zarr.create_array(
        tmp_path / "t",
        shape=picture.shape,
        dtype="uint8",
        chunks=picture.shape,
        serializer=JpegCodec(95),
        compressors=None,
    )
    array[...] = picture
    assert json.loads((tmp_path / "t/zarr.json").read_text())["codecs"] == [
        {"name": "milcore_jpeg", "configuration": {"quality": 95}}
    ]
    assert np.abs(zarr.open_array(tmp_path / "t", mode="r")[:].astype(int) - picture).max() <= 4


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_lossless_codecs_return_the_pixels(codec: Codec) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    decoded = np.empty_like(noise)
    decode_into(encode_patch(noise, codec, 90), codec, decoded)
    np.testing.assert_array_equal(decoded, noise)


def test_a_chunk_of_another_size_is_refused() -> None:
    with pytest.raises(StoreError, match="patch: expected 1728 bytes, got 1200"):
        decode_into(encode_patch(np.zeros((20, 20, 3), np.uint8), "zstd", 90), "zstd", np.empty((24, 24, 3), np.uint8))


def test_64_mb_hold_1627_jpeg_patches_of_256_px() -> None:
    """64e6 * 5 / (256 * 256 * 3) = 1627.6."""
    assert shards.patches_per_shard("jpeg", 256) == 1627
