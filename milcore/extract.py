"""Executes a TilePlan: reads each tile of the plan from an open slide and hands back the bytes that are stored of it.

Rows of patches follow one another, so a reader that keeps its last native tiles decodes each once; patches are held
only until they are compressed, a few for every thread. With codec passthrough the slide's own compressed tile is stored
where it is exactly the patch, and nothing is decoded. Order and bytes do not depend on the number of threads.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from milcore.allocator import keep_freed_memory
from milcore.config import Codec, IngestConfig
from milcore.errors import SlideError
from milcore.shards import encode_patch
from milcore.slides import SlideReader, read_area
from milcore.slides.reader import JpegTiles, Pixels, level_box
from milcore.sources import UnreachableError
from milcore.stain import Normaliser
from milcore.tiling import TilePlan

PATCHES_AHEAD = 8
SAMPLED_TILES = 32
SAMPLED_PX_APART = 2

Corner = tuple[int, int]
T = TypeVar("T")


class Storing(NamedTuple):
    """How a slide's patches are stored, and why not as asked (None where they are); what they pass before that."""

    codec: Codec
    instead: str | None = None
    normaliser: Normaliser | None = None


def choose_codec(reader: SlideReader, plan: TilePlan, config: IngestConfig) -> Storing:
    """The codec asked for; jpeg instead of passthrough where the slide's own tiles are not the patches."""
    if config.codec != "passthrough":
        return Storing(config.codec, None)
    if not isinstance(reader, JpegTiles):
        return Storing("jpeg", f"{reader.backend} hands out no compressed tiles")
    if not _scale_is_a_level(reader, plan, config.patch_size):
        return Storing("jpeg", "patches are resampled")
    for corner in plan.coords.tolist():
        try:
            found = _own_tile(reader, corner, plan, config.patch_size)
        except UnreachableError:
            raise
        except SlideError:
            continue
        if found is None:
            return Storing("jpeg", f"the slide has no JPEG tiles of {config.patch_size} px where the patches lie")
        return Storing("passthrough", None)
    return Storing("jpeg", "no tile can be read")


def sample(reader: SlideReader, plan: TilePlan, config: IngestConfig) -> Pixels:
    """Some of the slide's tissue, shape (n, 3): every fourth px of tiles spread evenly over the plan.

    Raises:
        UnreachableError: the storage of a remote slide fails.
    """
    taken = np.linspace(0, len(plan.coords) - 1, min(SAMPLED_TILES, len(plan.coords))).round().astype(int)
    apart = slice(None, None, SAMPLED_PX_APART)
    patches = (_unless_damaged(partial(_patch, reader, corner, plan, config)) for corner in plan.coords[taken].tolist())
    pixels = [patch[apart, apart].reshape(-1, 3) for patch in patches if patch is not None]
    return np.concatenate([np.empty((0, 3), np.uint8), *pixels])


def extract(
    reader: SlideReader, plan: TilePlan, config: IngestConfig, storing: Storing, threads: int
) -> Generator[bytes | None, None, None]:
    """The stored bytes of every tile of the plan in its order; None for one that cannot be read.

    Args:
        reader: the slide.
        plan: its tiles.
        config: patch size and JPEG quality.
        storing: as ``choose_codec`` says.
        threads: that read and compress; 1 works in the calling one.

    Raises:
        UnreachableError: the storage of a remote slide fails: none of its tiles is to blame.
    """
    keep_freed_memory()  # decoded tiles are freed and taken again, patch after patch
    corners = (tuple(corner) for corner in plan.coords.tolist())

    def chunk(corner: Corner) -> bytes | None:
        return _unless_damaged(partial(_chunk, reader, corner, plan, config, storing))

    if threads <= 1:
        yield from map(chunk, corners)
    else:
        yield from _in_threads(chunk, corners, threads)


def _chunk(reader: SlideReader, corner: Corner, plan: TilePlan, config: IngestConfig, storing: Storing) -> bytes:
    if storing.codec == "passthrough" and isinstance(reader, JpegTiles):
        own = _own_tile(reader, corner, plan, config.patch_size)
        if own is not None:
            return own
    patch = _patch(reader, corner, plan, config)
    if storing.normaliser is not None:
        patch = storing.normaliser.apply(patch)
    return encode_patch(patch, storing.codec, config.jpeg_quality)


def _patch(reader: SlideReader, corner: Corner, plan: TilePlan, config: IngestConfig) -> Pixels:
    return read_area(reader, corner, (plan.size_level0,) * 2, (config.patch_size,) * 2)


def _unless_damaged(read: Callable[[], T]) -> T | None:
    """What is read; None where the slide is damaged. A failing storage is not the slide's damage."""
    try:
        return read()
    except UnreachableError:
        raise
    except SlideError:
        return None


def _scale_is_a_level(reader: SlideReader, plan: TilePlan, edge: int) -> bool:
    box = level_box(reader.level_downsamples, (0.0, 0.0), (plan.size_level0,) * 2, plan.size_level0 / edge)
    return (box.right, box.bottom) == (edge, edge)


def _own_tile(reader: JpegTiles, corner: Corner, plan: TilePlan, edge: int) -> bytes | None:
    box = level_box(reader.level_downsamples, corner, (plan.size_level0,) * 2, plan.size_level0 / edge)
    return reader.jpeg_tile(int(box.left), int(box.top), box.level, edge, edge)


def _in_threads(
    function: Callable[[Corner], bytes | None], corners: Iterator[Corner], threads: int
) -> Iterator[bytes | None]:
    running: deque[Future[bytes | None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for corner in corners:
            running.append(pool.submit(function, corner))
            if len(running) > PATCHES_AHEAD * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
