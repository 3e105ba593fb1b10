"""Executes a TilePlan: reads each tile of the plan from an open slide and hands back the bytes that are stored of it.

Rows of patches follow one another, so a reader that keeps its last native tiles decodes each once; patches are held
only until they are compressed, a few for every thread. With codec passthrough the slide's own compressed tile is stored
where it is exactly the patch, and nothing is decoded. Order and bytes do not depend on the number of threads.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from milcore.config import Codec, IngestConfig
from milcore.errors import SlideError, UnreachableSlideError
from milcore.ingestion.stain import Normaliser
from milcore.ingestion.tiling import TilePlan
from milcore.runtime.malloc import keep_freed_memory
from milcore.slides import SlideReader, read_area
from milcore.slides.reader import BgrxReader, JpegTiles, LevelBox, Pixels, level_box
from milcore.store.jpeg_codec import encode_patch

PATCHES_A_RUN = 8
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
        except UnreachableSlideError:
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
        UnreachableSlideError: the storage of a remote slide fails.
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
        UnreachableSlideError: the storage of a remote slide fails: none of its tiles is to blame.
    """
    keep_freed_memory()  # decoded tiles are freed and taken again, patch after patch
    corners = (tuple(corner) for corner in plan.coords.tolist())

    make = _maker(reader, plan, config, storing)

    def chunk(corner: Corner) -> bytes | None:
        return _unless_damaged(partial(make, corner))

    if threads <= 1:
        yield from map(chunk, corners)
    else:
        yield from _in_threads(chunk, corners, threads)


def _maker(reader: SlideReader, plan: TilePlan, config: IngestConfig, storing: Storing) -> Callable[[Corner], bytes]:
    """What makes the stored bytes of a tile from its corner, in as few steps as this reader and plan allow."""
    encode = partial(encode_patch, codec=storing.codec, quality=config.jpeg_quality)
    normalise = storing.normaliser.apply if storing.normaliser else None

    def from_patch(corner: Corner) -> bytes:
        patch = _patch(reader, corner, plan, config)
        return encode(normalise(patch) if normalise else patch)

    if storing.codec == "passthrough" and isinstance(reader, JpegTiles):
        tiles = reader  # as the checker sees it inside the function
        return lambda corner: _own_tile(tiles, corner, plan, config.patch_size) or from_patch(corner)
    exact = _scale_is_a_level(reader, plan, config.patch_size)
    if storing.codec == "jpeg" and exact and not normalise and isinstance(reader, BgrxReader):
        words = reader
        return lambda corner: encode(_words(words, corner, plan, config.patch_size))
    return from_patch


def _words(reader: BgrxReader, corner: Corner, plan: TilePlan, edge: int) -> Pixels:
    box = _box(reader, corner, plan, edge)
    return reader.read_bgrx(int(box.left), int(box.top), box.level, edge, edge)


def _patch(reader: SlideReader, corner: Corner, plan: TilePlan, config: IngestConfig) -> Pixels:
    return read_area(reader, corner, (plan.size_level0,) * 2, (config.patch_size,) * 2)


def _unless_damaged(read: Callable[[], T]) -> T | None:
    """What is read; None where the slide is damaged. A failing storage is not the slide's damage."""
    try:
        return read()
    except UnreachableSlideError:
        raise
    except SlideError:
        return None


def _scale_is_a_level(reader: SlideReader, plan: TilePlan, edge: int) -> bool:
    box = _box(reader, (0, 0), plan, edge)
    return (box.right, box.bottom) == (edge, edge)


def _own_tile(reader: JpegTiles, corner: Corner, plan: TilePlan, edge: int) -> bytes | None:
    box = _box(reader, corner, plan, edge)
    return reader.jpeg_tile(int(box.left), int(box.top), box.level, edge, edge)


def _box(reader: SlideReader | JpegTiles | BgrxReader, corner: Corner, plan: TilePlan, edge: int) -> LevelBox:
    return level_box(reader.level_downsamples, corner, (plan.size_level0,) * 2, plan.size_level0 / edge)


def _in_threads(
    function: Callable[[Corner], bytes | None], corners: Iterator[Corner], threads: int
) -> Iterator[bytes | None]:
    """In runs of tiles: handing over each costs a tenth of the time that two threads take to make JPEGs."""
    running: deque[Future[list[bytes | None]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while run := list(islice(corners, PATCHES_A_RUN)):
            running.append(pool.submit(list, map(function, run)))
            if len(running) > threads:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
