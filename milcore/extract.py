"""Executes a TilePlan: reads each tile of the plan from an open slide and hands back the bytes that are stored of it.

Rows of patches follow one another, so a reader that keeps its last native tiles decodes each once; patches are held
only until they are compressed, a few for every thread. With codec passthrough the slide's own compressed tile is stored
where it is exactly the patch, and nothing is decoded. Order and bytes do not depend on the number of threads.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from milcore.allocator import keep_freed_memory
from milcore.config import Codec, IngestConfig
from milcore.errors import SlideError
from milcore.shards import encode_patch
from milcore.slides import SlideReader, read_area
from milcore.slides.reader import JpegTiles, level_box
from milcore.sources import UnreachableError
from milcore.tiling import TilePlan

PATCHES_AHEAD = 8

Corner = tuple[int, int]


class ChosenCodec(NamedTuple):
    """How a slide's patches are stored, and why not as asked; None where they are."""

    codec: Codec
    instead: str | None


def choose_codec(reader: SlideReader, plan: TilePlan, config: IngestConfig) -> ChosenCodec:
    """The codec asked for; jpeg instead of passthrough where the slide's own tiles are not the patches."""
    if config.codec != "passthrough":
        return ChosenCodec(config.codec, None)
    if not isinstance(reader, JpegTiles):
        return ChosenCodec("jpeg", f"{reader.backend} hands out no compressed tiles")
    if not _scale_is_a_level(reader, plan, config.patch_size):
        return ChosenCodec("jpeg", "patches are resampled")
    for corner in plan.coords.tolist():
        try:
            found = _own_tile(reader, corner, plan, config.patch_size)
        except UnreachableError:
            raise
        except SlideError:
            continue
        if found is None:
            return ChosenCodec("jpeg", f"the slide has no JPEG tiles of {config.patch_size} px where the patches lie")
        return ChosenCodec("passthrough", None)
    return ChosenCodec("jpeg", "no tile can be read")


def extract(
    reader: SlideReader, plan: TilePlan, config: IngestConfig, codec: Codec, threads: int
) -> Generator[bytes | None, None, None]:
    """The stored bytes of every tile of the plan in its order; None for one that cannot be read.

    Args:
        reader: the slide.
        plan: its tiles.
        config: patch size and JPEG quality.
        codec: as ``choose_codec`` says.
        threads: that read and compress; 1 works in the calling one.

    Raises:
        UnreachableError: the storage of a remote slide fails: none of its tiles is to blame.
    """
    keep_freed_memory()  # decoded tiles are freed and taken again, patch after patch
    corners = (tuple(corner) for corner in plan.coords.tolist())

    def chunk(corner: Corner) -> bytes | None:
        try:
            return _chunk(reader, corner, plan, config, codec)
        except UnreachableError:
            raise
        except SlideError:
            return None

    if threads <= 1:
        yield from map(chunk, corners)
    else:
        yield from _in_threads(chunk, corners, threads)


def _chunk(reader: SlideReader, corner: Corner, plan: TilePlan, config: IngestConfig, codec: Codec) -> bytes:
    edge = config.patch_size
    if codec == "passthrough" and isinstance(reader, JpegTiles):
        own = _own_tile(reader, corner, plan, edge)
        if own is not None:
            return own
    patch = read_area(reader, corner, (plan.size_level0, plan.size_level0), (edge, edge))
    return encode_patch(patch, codec, config.jpeg_quality)


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
