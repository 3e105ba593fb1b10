"""Extraction of patches: tiles of a plan, read from a slide and encoded.

Rows of patches follow one another, so a reader that keeps its last native tiles decodes each once; patches stay in
memory only until they are compressed, a few for every thread. With codec passthrough the slide's own compressed tile is
stored where it is exactly the patch; a sample of these is decoded and compared with the slide, the others are not
decoded. Order and bytes do not depend on the number of threads.
"""

import io
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

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
# of the tiles that are copied: what goes wrong with them does so for a whole level
COMPARED_TILES = 8
# levels of a channel by which two JPEG decoders may differ
DECODERS_DIFFER = 8

Corner = tuple[int, int]
T = TypeVar("T")


class PatchEncoding(NamedTuple):
    """Encoding of a slide's patches.

    Args:
        codec: of the chunks.
        codec_instead: reason why it is another than asked for; None where it is not.
        normaliser: applied before encoding.
    """

    codec: Codec
    codec_instead: str | None = None
    normaliser: Normaliser | None = None


def choose_encoding(reader: SlideReader, plan: TilePlan, config: IngestConfig) -> PatchEncoding:
    """Choose the codec of the config, or jpeg where passthrough is impossible."""
    if config.codec != "passthrough":
        return PatchEncoding(config.codec, None)
    if not isinstance(reader, JpegTiles):
        return PatchEncoding("jpeg", f"{reader.backend} hands out no compressed tiles")
    if not _scale_is_a_level(reader, plan, config.patch_size):
        return PatchEncoding("jpeg", "patches are resampled")
    for corner in plan.coords.tolist():
        try:
            tile = _native_tile(reader, corner, plan, config.patch_size)
        except UnreachableSlideError:
            raise
        except SlideError:
            continue
        if tile is None:
            return PatchEncoding("jpeg", f"the slide has no JPEG tiles of {config.patch_size} px where the patches lie")
        if tile:
            return PatchEncoding("passthrough", None)
    return PatchEncoding("jpeg", "no tile can be read")


def sample_tissue(reader: SlideReader, plan: TilePlan, config: IngestConfig) -> Pixels:
    """Sample px of the slide's tissue, shape (n, 3).

    Every second px in each direction, of tiles at equal distances in the plan.

    Raises:
        UnreachableSlideError: the storage of a remote slide fails.
    """
    apart = slice(None, None, SAMPLED_PX_APART)
    corners = plan.coords[_sample(len(plan.coords), SAMPLED_TILES)].tolist()
    patches = (_unless_damaged(partial(_patch, reader, corner, plan, config)) for corner in corners)
    pixels = [patch[apart, apart].reshape(-1, 3) for patch in patches if patch is not None]
    return np.concatenate([np.empty((0, 3), np.uint8), *pixels])


def extract(
    reader: SlideReader, plan: TilePlan, config: IngestConfig, encoding: PatchEncoding, threads: int
) -> Generator[bytes | None, None, None]:
    """Encode every tile of the plan in its order; None for an unreadable tile.

    Args:
        reader: of the open slide.
        plan: tiles of the slide.
        config: patch size and JPEG quality.
        encoding: as ``choose_encoding`` returns it.
        threads: that read and compress; 1 works in the calling one.

    Raises:
        UnreachableSlideError: the storage of a remote slide fails, which makes no tile unreadable.
        SlideError: a tile that is copied decodes to other pixels than the slide's.
    """
    keep_freed_memory()  # decoded tiles are freed and taken again, patch after patch
    corners = (tuple(corner) for corner in plan.coords.tolist())

    chunk_at = _chunk_function(reader, plan, config, encoding)

    def chunk(corner: Corner) -> bytes | None:
        return _unless_damaged(partial(chunk_at, corner))

    chunks = map(chunk, corners) if threads <= 1 else _in_threads(chunk, corners, threads)
    yield from _compare_sample(chunks, reader, plan, config) if encoding.codec == "passthrough" else chunks


def _compare_sample(
    chunks: Iterable[bytes | None], reader: SlideReader, plan: TilePlan, config: IngestConfig
) -> Iterator[bytes | None]:
    """Pass chunks on; compare a sample of the copied tiles with the slide.

    Pillow decodes them, which knows nothing of the TIFF. A tile that the reader itself cannot decode is unreadable.

    Raises:
        SlideError: the pixels differ.
    """
    sample = set(_sample(len(plan.coords), COMPARED_TILES).tolist())
    for number, chunk in enumerate(chunks):
        corner = plan.coords[number].tolist()
        if number not in sample or not chunk or not isinstance(reader, JpegTiles):
            yield chunk
        elif _native_tile(reader, corner, plan, config.patch_size) != chunk:
            yield chunk  # no copy of a tile
        else:
            patch = _unless_damaged(partial(_patch, reader, corner, plan, config))
            if patch is not None and not _decodes_to(chunk, patch):
                raise SlideError(
                    f"the JPEG tile at {corner[0]}, {corner[1]} px, copied as it is, decodes to other pixels than the "
                    "slide's; take --codec jpeg"
                )
            yield chunk if patch is not None else None


def _decodes_to(jpeg: bytes, pixels: Pixels) -> bool:
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            shown = np.asarray(image.convert("RGB"), np.int16)
    except (OSError, SyntaxError, ValueError):
        return False
    return shown.shape == pixels.shape and bool(np.abs(shown - pixels).max() <= DECODERS_DIFFER)


def _sample(tiles: int, most: int) -> npt.NDArray[np.intp]:
    """Indices of at most so many tiles, at equal distances."""
    return np.linspace(0, tiles - 1, min(most, tiles)).round().astype(np.intp)


def _chunk_function(
    reader: SlideReader, plan: TilePlan, config: IngestConfig, encoding: PatchEncoding
) -> Callable[[Corner], bytes]:
    """Function from a tile's corner to its chunk.

    It takes as few steps as this reader and plan allow.
    """
    encode = partial(encode_patch, codec=encoding.codec, quality=config.jpeg_quality)
    normalise = encoding.normaliser.apply if encoding.normaliser else None

    def from_patch(corner: Corner) -> bytes:
        patch = _patch(reader, corner, plan, config)
        return encode(normalise(patch) if normalise else patch)

    if encoding.codec == "passthrough" and isinstance(reader, JpegTiles):
        tiles = reader  # as the checker sees it inside the function
        return lambda corner: _native_tile(tiles, corner, plan, config.patch_size) or from_patch(corner)
    exact = _scale_is_a_level(reader, plan, config.patch_size)
    if encoding.codec == "jpeg" and exact and not normalise and isinstance(reader, BgrxReader):
        bgrx_reader = reader
        return lambda corner: encode(_bgrx_patch(bgrx_reader, corner, plan, config.patch_size))
    return from_patch


def _bgrx_patch(reader: BgrxReader, corner: Corner, plan: TilePlan, edge: int) -> Pixels:
    box = _box(reader, corner, plan, edge)
    return reader.read_bgrx(int(box.left), int(box.top), box.level, edge, edge)


def _patch(reader: SlideReader, corner: Corner, plan: TilePlan, config: IngestConfig) -> Pixels:
    return read_area(reader, corner, (plan.patch_size_level0,) * 2, (config.patch_size,) * 2)


def _unless_damaged(read: Callable[[], T]) -> T | None:
    """Result of ``read``; None where the slide is damaged.

    A failing storage is no damage: it raises.
    """
    try:
        return read()
    except UnreachableSlideError:
        raise
    except SlideError:
        return None


def _scale_is_a_level(reader: SlideReader, plan: TilePlan, edge: int) -> bool:
    box = _box(reader, (0, 0), plan, edge)
    return (box.right, box.bottom) == (edge, edge)


def _native_tile(reader: JpegTiles, corner: Corner, plan: TilePlan, edge: int) -> bytes | None:
    box = _box(reader, corner, plan, edge)
    return reader.jpeg_tile(int(box.left), int(box.top), box.level, edge, edge)


def _box(reader: SlideReader | JpegTiles | BgrxReader, corner: Corner, plan: TilePlan, edge: int) -> LevelBox:
    size = plan.patch_size_level0
    return level_box(reader.level_downsamples, corner, (size,) * 2, size / edge)


def _in_threads(
    function: Callable[[Corner], bytes | None], corners: Iterator[Corner], threads: int
) -> Iterator[bytes | None]:
    """Map over corners on threads, in order, by runs of tiles.

    Handing over single tiles costs a tenth of the time in which two threads encode JPEGs.
    """
    running: deque[Future[list[bytes | None]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while run := list(islice(corners, PATCHES_A_RUN)):
            running.append(pool.submit(list, map(function, run)))
            if len(running) > threads:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
