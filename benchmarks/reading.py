"""Speed of reading patches from the store, HDF5 and Zarr at equal codec.

Rows for ``benchmarks.ingest``. The same patches, repeated to 1,000, lie raw, compressed losslessly (zstd here, gzip-4
in HDF5, as its tools do, zstd in Zarr) and as JPEG files. In sequence they are read in runs of 64, at random one by one
in a shuffled order that is the same for all; whoever reads JPEG files from HDF5 or Zarr decodes them with the same
decoder. Files lie in the page cache. Every method reads once a round, in turn; patches over CPU seconds, the median of
the rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from milcore.config import Codec
from milcore.store.jpeg_codec import encode_patch
from milcore.store.shards import ShardReader, ShardWriter

RUN = 64
PATCHES = 1_000
CODECS: tuple[Codec, ...] = ("none", "zstd", "jpeg")

Patches = npt.NDArray[np.uint8]
Read = Callable[[int, int], Patches]


def reading_rows(patches: Patches, rounds: int) -> list[dict[str, Any]]:
    """A row for every layout and way of access."""
    patches = np.concatenate([patches] * -(-PATCHES // len(patches)))[:PATCHES]
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        readers = {name: read for codec in CODECS for name, read in _layouts(Path(folder), patches, codec).items()}
        for turn in range(rounds + 1):
            for name, read in readers.items():
                for access, runs in (("sequential", _in_sequence()), ("random", _at_random())):
                    taken = _cpu_s(read, runs)
                    if turn:
                        times.setdefault((name, access), []).append(taken)
    return [
        {"method": name, "access": access, "patches_per_s": PATCHES / statistics.median(taken), "rounds": rounds}
        for (name, access), taken in times.items()
    ]


def _in_sequence() -> list[tuple[int, int]]:
    return [(start, min(start + RUN, PATCHES)) for start in range(0, PATCHES, RUN)]


def _at_random() -> list[tuple[int, int]]:
    return [(k, k + 1) for k in np.random.default_rng(0).permutation(PATCHES).tolist()]


def _cpu_s(read: Read, runs: list[tuple[int, int]]) -> float:
    start = time.process_time()
    for low, high in runs:
        read(low, high)
    return time.process_time() - start


def _layouts(folder: Path, patches: Patches, codec: Codec) -> dict[str, Read]:
    return {
        f"store_{codec}": _store(folder, patches, codec),
        f"hdf5_{'gzip' if codec == 'zstd' else codec}": _hdf5(folder, patches, codec),
        f"zarr_{codec}": _zarr(folder, patches, codec),
    }


def _store(folder: Path, patches: Patches, codec: Codec) -> Read:
    writer = ShardWriter(str(folder / f"store_{codec}"), patches.shape[1], codec, 90)
    for patch in patches:
        writer.append(patch)
    writer.finish()
    return ShardReader(str(folder / f"store_{codec}")).read


def _hdf5(folder: Path, patches: Patches, codec: Codec) -> Read:
    file = h5py.File(folder / f"{codec}.h5", "w")
    if codec == "jpeg":
        kept = file.create_dataset("imgs", len(patches), h5py.vlen_dtype(np.uint8))
        for k, patch in enumerate(patches):
            kept[k] = np.frombuffer(encode_patch(patch, "jpeg", 90), np.uint8)
        return lambda low, high: _decoded(kept[low:high])
    how = {"compression": "gzip", "compression_opts": 4} if codec == "zstd" else {}
    images = file.create_dataset("imgs", data=patches, chunks=(1, *patches.shape[1:]), **how)
    return lambda low, high: images[low:high]


def _zarr(folder: Path, patches: Patches, codec: Codec) -> Read:
    if codec == "jpeg":
        files = [encode_patch(patch, "jpeg", 90) for patch in patches]
        longest = max(len(file) for file in files)
        padded = np.stack([np.frombuffer(file.ljust(longest, b"\0"), np.uint8) for file in files])
        kept = zarr.create_array(folder / "jpeg.zarr", data=padded, chunks=(1, longest), compressors=None)
        return lambda low, high: np.stack(
            [imagecodecs.jpeg8_decode(file.tobytes()) for file in np.asarray(kept[low:high])]
        )
    how = ZstdCodec(level=3) if codec == "zstd" else None
    array = zarr.create_array(folder / f"{codec}.zarr", data=patches, chunks=(1, *patches.shape[1:]), compressors=how)
    return lambda low, high: np.asarray(array[low:high])


def _decoded(files: npt.NDArray[np.generic]) -> Patches:
    return np.stack([imagecodecs.jpeg8_decode(file.tobytes()) for file in files])
