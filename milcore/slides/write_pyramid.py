"""Writer of tiled, JPEG-compressed, pyramidal TIFFs: synthetic slides and heat maps.

Every level is a page of its own, each after the first marked as a reduced image, so OpenSlide opens the file as
``generic-tiff`` and takes um/px from the resolution tags. Equal pixels and settings give equal bytes: no clock, no host
name, one encoding thread. Axis words: row, column, rgb.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image

from milcore.errors import InputError

UM_PER_CM = 10_000.0
TILE = 256
CLASSIC_TIFF_BYTES = 2**32


def write_pyramid(
    target: Path | BinaryIO,
    pixels: UInt8[np.ndarray, "row column rgb"],
    mpp: float,
    levels: int,
    quality: int = 85,
) -> None:
    """Write an image and its ``levels - 1`` successive halvings.

    Level k measures ``ceil(size / 2**k)`` px. Each reduced px is the mean of the 2 x 2 px under it. Peak memory beside
    ``pixels``: some bands of 256 rows. The file becomes a BigTIFF where the uncompressed levels would pass 4 GiB.

    Args:
        target: local file, or a binary stream that can seek.
        pixels: level 0; an array or a memory map.
        mpp: um/px of level 0.
        levels: pages to write, at least 1.
        quality: JPEG quality, 1 to 100, chroma 4:4:4.

    Raises:
        InputError: a setting is out of range, or ``pixels`` is not an RGB image.
    """
    _check(pixels, mpp, levels)
    with tifffile.TiffWriter(target, bigtiff=pixels.nbytes * 4 // 3 >= CLASSIC_TIFF_BYTES) as tiff:
        for level in range(levels):
            tiff.write(
                _tiles(pixels, level),
                shape=(*(-(-edge // 2**level) for edge in pixels.shape[:2]), 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": quality},
                subsampling=(1, 1),
                subfiletype=int(level > 0),
                resolution=(UM_PER_CM / (mpp * 2**level),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
                software="milcore",
                maxworkers=1,
            )


def _check(pixels: UInt8[np.ndarray, "row column rgb"], mpp: float, levels: int) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(
            f"pixels: expected colours (row, column, 3), got {pixels.dtype} {pixels.shape}; allowed: uint8, not empty"
        )
    if not (np.isfinite(mpp) and mpp > 0):
        raise InputError(f"mpp: expected um/px, got {mpp!r}; allowed: finite numbers above 0")
    if levels < 1:
        raise InputError(f"levels: expected at least 1 level, got {levels}; allowed: 1, 2, …")


def _band(pixels: UInt8[np.ndarray, "row column rgb"], level: int, top: int) -> UInt8[np.ndarray, "row column rgb"]:
    """Rows ``top`` to ``top + TILE`` of a level, fewer at the end.

    Each level is made anew from level 0, so that memory holds a few bands of rows and never a level.
    """
    if level == 0:
        return np.ascontiguousarray(pixels[top : top + TILE])
    rows = -(-pixels.shape[0] // 2 ** (level - 1))
    finer = [_band(pixels, level - 1, start) for start in (2 * top, 2 * top + TILE) if start < rows]
    return np.asarray(Image.fromarray(np.concatenate(finer)).reduce(2))


def _tiles(pixels: UInt8[np.ndarray, "row column rgb"], level: int) -> Iterator[UInt8[np.ndarray, "row column rgb"]]:
    """Tiles of a level in TIFF order.

    Tiles over the right or lower edge repeat the last px, so that JPEG makes no ringing at the slide's edge.
    """
    for top in range(0, -(-pixels.shape[0] // 2**level), TILE):
        band = _band(pixels, level, top)
        for left in range(0, band.shape[1], TILE):
            tile = band[:, left : left + TILE]
            padding = ((0, TILE - tile.shape[0]), (0, TILE - tile.shape[1]), (0, 0))
            yield np.pad(tile, padding, mode="edge") if tile.shape[:2] != (TILE, TILE) else np.ascontiguousarray(tile)
