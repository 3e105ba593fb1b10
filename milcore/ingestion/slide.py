"""Ingestion of one slide: tissue, tile plan, patches, and its record in the store."""

import contextlib
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from milcore.cohort.manifest import Slide
from milcore.config import MAX_INSTANCES_PER_SLIDE, MAX_MEGAPIXELS_PER_PATCH, IngestConfig
from milcore.errors import SlideError, UnreachableSlideError
from milcore.ingestion.extract import choose_encoding, extract, sample_tissue
from milcore.ingestion.slide_result import (
    SlideOutcome,
    SlideResult,
    SlideTask,
    quarantine,
    record_outcome,
    row_with_source,
    skip,
    stored_slide,
)
from milcore.ingestion.stain import Normaliser, estimate_stains
from milcore.ingestion.tiling import TilePlan, grid_size, plan_tiles, tile_size_level0
from milcore.ingestion.tissue import METHOD, Mask, tissue_mask
from milcore.runtime.progress import log_line
from milcore.slides import RemoteFile, SlideReader, find_remote_slide, open_slide
from milcore.slides.mpp import COARSEST_MPP, FINEST_MPP, SAME_SCALE, magnification_mpp
from milcore.slides.reader import Pixels, level_box
from milcore.slides.resample import area_resize
from milcore.slides.source import SourceVersion, fetch, source_version
from milcore.store.slide_record import ScanRecord, SlideMpp, SlideRecord, SourceFile, TileCounts
from milcore.store.slide_row import SlideRow
from milcore.store.store import PatchStore, StoredSlide
from milcore.store.writer import SlideWriter

MASK_PX_PER_TILE = 16
THUMBNAIL_EDGES_PX = (1024, 4096)
IMAGES_NAMED = 5


@dataclass(slots=True)
class _SlideIngestion:
    """Ingestion of one slide into a store, and its record so far.

    The record gets its fields as they become known; it is quarantined as it is where ingestion fails.
    """

    task: SlideTask
    store: PatchStore
    config: IngestConfig
    threads: int
    record: SlideRecord

    @property
    def slide(self) -> Slide:
        return self.task.slide


def ingest_slide(slide: Slide, store: PatchStore, config: IngestConfig, threads: int = 1) -> SlideOutcome:
    """Write the patches of one slide to the store, or quarantine it.

    Args:
        slide: of the cohort.
        store: to write.
        config: settings of ingestion.
        threads: that read and compress.
    """
    return write_slide(SlideTask(slide), store, config, threads).outcome


def write_slide(task: SlideTask, store: PatchStore, config: IngestConfig, threads: int) -> SlideResult:
    """Write the patches of one slide, or quarantine it, as ``ingest_slide``."""
    slide = task.slide
    work = _SlideIngestion(task, store, config, threads, _first_record(slide, config))
    try:
        version = source_version(slide.uri)._asdict()
        earlier = None if task.is_new else stored_slide(store, slide.slide_id)
        if earlier and _is_up_to_date(earlier.record, work.record) and earlier.source == version:
            return skip(store, earlier)
        result = _ingest_file(work, earlier and earlier.record)
    except UnreachableSlideError as error:
        return _quarantine_until_retry(store, work.record, str(error))
    except SlideError as error:
        result = quarantine(store, work.record, str(error))
    source = store.write_source(slide.slide_id, version)
    return result._replace(row=row_with_source(result, store, source))


def is_current(slide: Slide, stored: StoredSlide, config: IngestConfig, version: SourceVersion | None) -> bool:
    """True where ``write_slide`` would leave a slide as it is.

    Args:
        slide: of the cohort.
        stored: what the store has of it.
        config: settings of ingestion.
        version: of its file; None where it is unknown.
    """
    is_unchanged = version is not None and stored.source == version._asdict()
    return is_unchanged and _is_up_to_date(stored.record, _first_record(slide, config))


def _ingest_file(work: _SlideIngestion, earlier: SlideRecord | None) -> SlideResult:
    """Ingest a remote file in place or a local copy, unless it is unchanged.

    The content's identity is the sha256 of a copy; of a remote file, which is never read whole, the storage's ETag.
    """
    slide = work.slide
    with contextlib.ExitStack() as stack:
        remote = find_remote_slide(slide.uri, work.config.reader)
        if remote is None:
            path, size, sha256 = fetch(slide.uri, stack)
            source = SourceFile(slide.uri, size, sha256)
        else:
            source = SourceFile(slide.uri, remote.size, etag=remote.etag)
        work.record = replace(work.record, source=source)
        if earlier and _is_up_to_date(earlier, work.record) and earlier.source == source:
            return SlideResult(record_outcome(earlier, skipped=True), None)
        with open_slide(remote or path, work.config.reader) as reader:
            patches, row = _ingest_pixels(work, reader, remote)
    return SlideResult(SlideOutcome(slide.slide_id, "ok", None, patches, skipped=False), row)


def _first_record(slide: Slide, config: IngestConfig) -> SlideRecord:
    """Record of a slide before its file is opened."""
    parameters = {**config.model_dump(), "slide_mpp": slide.mpp}
    return SlideRecord(slide.slide_id, parameters=parameters, source=SourceFile(slide.uri))


def _is_up_to_date(earlier: SlideRecord, record: SlideRecord) -> bool:
    """True where another ingestion would give the earlier record.

    Settings without effect on an ok slide may differ. One that an earlier version lacked had its default's effect.
    """
    if earlier.retry or earlier.import_origin is not None or earlier.parameters is None:
        return False
    before, parameters = IngestConfig().model_dump() | earlier.parameters, record.parameters or {}
    free = set()
    if earlier.mpp is not None and earlier.counts is not None:
        free |= {"default_mpp"} if earlier.mpp.origin != "default_mpp" else set()
        free |= {"mpp_from_magnification"} if earlier.mpp.origin in {"manifest", "slide"} else set()
        free |= {"max_unreadable"} if earlier.counts.unreadable <= parameters["max_unreadable"] else set()
    return all(before.get(name) == value for name, value in parameters.items() if name not in free)


def _ingest_pixels(work: _SlideIngestion, reader: SlideReader, remote: RemoteFile | None) -> tuple[int, SlideRow]:
    """Plan an open slide and write its patches.

    Returns their number, and the slide's row of the catalogue.
    """
    slide, config = work.slide, work.config
    mpp, origin = _mpp(slide, reader, config)
    step = tile_size_level0(mpp, config)
    _check_work(reader, mpp, config)
    _log_unread_images(slide, reader)
    thumbnail = reader.thumbnail(thumbnail_edge(reader.size, step))
    mask = mask_of(thumbnail, reader.size, step)
    plan = _plan(reader.size, mpp, mask, config)
    encoding = choose_encoding(reader, plan, config)
    scan = _scan_record(reader, mpp, config, encoding.codec_instead)
    work.record = replace(work.record, scan=scan, **_scale_fields(reader, mpp, origin, config))
    if config.stain_normalisation == "macenko":
        stains = estimate_stains(sample_tissue(reader, plan, config))
        encoding = encoding._replace(normaliser=Normaliser(stains))
        work.record = replace(work.record, scan=replace(scan, stain_normalisation=stains.to_attrs()))
    form = (config.patch_size, encoding.codec, config.jpeg_quality)
    with work.store.writer(work.record, *form, is_new=work.task.is_new) as writer:
        writer.write_thumbnail(thumbnail)
        writer.write_mask(mask)
        # tiles that are only copied wait for Python's lock, unless they come over the network
        threads = 1 if encoding.codec == "passthrough" and remote is None else work.threads
        with contextlib.closing(extract(reader, plan, config, encoding, threads)) as chunks:
            unreadable = write_patches(chunks, plan, writer, config)
        if remote is not None:
            remote.check_unchanged()
        counts = TileCounts(plan.grid, len(plan.coords), unreadable, len(plan.coords) - unreadable)
        writer.write_counts(counts)
    return counts.patches, writer.row


def _log_unread_images(slide: Slide, reader: SlideReader) -> None:
    if reader.unread_images:
        log_line(f"{slide.slide_id}: {unread_text(reader.unread_images, reader.size)}")


def unread_text(unread: Sequence[Sequence[int]], size: Sequence[int]) -> str:
    """Line on the images of a file that are not read.

    Args:
        unread: (width, height) of each, px.
        size: of the image that is read, px.
    """
    sizes = ", ".join(f"{width:,} x {height:,} px" for width, height in unread[:IMAGES_NAMED])
    more = " …" if len(unread) > IMAGES_NAMED else ""
    return (
        f"of {len(unread) + 1} images in the file the largest is read, {size[0]:,} x {size[1]:,} px; not read: {sizes}"
        f"{more}; save a further region of interest as a slide of its own"
    )


def _scan_record(reader: SlideReader, mpp: float, config: IngestConfig, codec_instead: str | None) -> ScanRecord:
    return ScanRecord(
        reader=reader.backend,
        level0_affine=[[mpp, 0.0, 0.0], [0.0, mpp, 0.0]],
        # the profile is not applied: pixels stay as scanned
        icc_sha256=None if reader.icc is None else hashlib.sha256(reader.icc).hexdigest(),
        tissue={**METHOD, "mask_px_per_tile": MASK_PX_PER_TILE, "min_tissue": config.min_tissue},
        codec_instead=codec_instead,
        unread_images=[list(size) for size in reader.unread_images],
    )


def _scale_fields(reader: SlideReader, mpp: float, origin: str, config: IngestConfig) -> dict[str, Any]:
    """Size, bounds and scale of a slide and its patches, by field."""
    step = tile_size_level0(mpp, config)
    patch_mpp = config.mpp if step != config.patch_size else mpp
    return {
        "size_level0": (reader.size[0], reader.size[1]),
        "bounds": reader.bounds,
        "mpp": SlideMpp(mpp, config.mpp, patch_mpp, origin),
        "patch_size_level0": step,
    }


def _mpp(slide: Slide, reader: SlideReader, config: IngestConfig) -> tuple[float, str]:
    """um/px of level 0 and its origin.

    From the manifest, else the slide's file, else its objective where that is asked for, else the default.
    """
    of_objective = magnification_mpp(reader.magnification)
    for mpp, origin in (
        (slide.mpp, "manifest"),
        (reader.mpp, "slide"),
        (of_objective if config.mpp_from_magnification else None, "magnification"),
        (config.default_mpp, "default_mpp"),
    ):
        if mpp is not None:
            if mpp > config.mpp * (1.0 + SAME_SCALE):
                raise SlideError(
                    f"too coarse: {mpp:g} um/px (from the {origin}) at its finest, {config.mpp:g} um/px asked for; "
                    "it would have to be magnified"
                )
            return mpp, origin
    missing = f"the slide tells no um/px between {FINEST_MPP:g} and {COARSEST_MPP:g}"
    if reader.backend.endswith(":geotiff"):
        missing = "a GeoTIFF has the scale of a map; convert it with vips tiffsave --tile --pyramid --xres PX_PER_MM"
    objective = "" if of_objective is None else f", or --mpp-from-magnification ({reader.magnification:g}x)"
    raise SlideError(f"no mpp: {missing}; give --default-mpp, or an mpp in the manifest{objective}")


def _check_work(reader: SlideReader, mpp: float, config: IngestConfig) -> None:
    """Check the number of tiles and the px under one of them.

    Raises:
        SlideError: they are beyond the limits.
    """
    tiles = grid_size(reader.size, mpp, config)
    if math.prod(tiles) > MAX_INSTANCES_PER_SLIDE:
        raise SlideError(
            f"{math.prod(tiles):,} tiles of stride {config.stride or config.patch_size} px in {reader.size[0]:,} x "
            f"{reader.size[1]:,} px; allowed: {MAX_INSTANCES_PER_SLIDE:,}; take a larger --stride or --mpp"
        )
    edge = tile_size_level0(mpp, config)
    box = level_box(reader.level_downsamples, (0.0, 0.0), (edge, edge), edge / config.patch_size)
    megapixels = (box.right - box.left) * (box.bottom - box.top) / 1e6
    if megapixels > MAX_MEGAPIXELS_PER_PATCH and all(tiles):
        raise SlideError(
            f"{megapixels:,.0f} megapixels of level {box.level} under one patch; allowed: {MAX_MEGAPIXELS_PER_PATCH}; "
            "take a smaller --mpp or --patch-size, or a slide with more levels"
        )


def thumbnail_edge(size: tuple[int, int], step: float) -> int:
    """Longer edge of the thumbnail in px.

    A tile measures MASK_PX_PER_TILE px in it, within the bounds THUMBNAIL_EDGES_PX.

    Args:
        size: (width, height) of the slide in level-0 px.
        step: tile edge in level-0 px.
    """
    low, high = THUMBNAIL_EDGES_PX
    return min(max(size), high, max(low, round(MASK_PX_PER_TILE * max(size) / step)))


def mask_of(thumbnail: Pixels, size: tuple[int, int], step: float) -> Mask:
    """Tissue mask of a slide, at about MASK_PX_PER_TILE px a tile.

    Args:
        thumbnail: of the whole slide, shape (row, column, 3).
        size: (width, height) of the slide in level-0 px.
        step: tile edge in level-0 px.
    """
    height, width = thumbnail.shape[:2]
    shrink = max(1.0, max(width, height) * step / (MASK_PX_PER_TILE * max(size)))
    small = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    return tissue_mask(area_resize(thumbnail, (0.0, 0.0, width, height), small))


def _plan(size: tuple[int, int], mpp: float, mask: Mask, config: IngestConfig) -> TilePlan:
    """The slide's tiles with tissue.

    Raises:
        SlideError: there are none, and the reason.
    """
    plan = plan_tiles(size, mpp, mask, config)
    if not plan.grid:
        step = tile_size_level0(mpp, config)
        raise SlideError(f"too small: {size[0]} x {size[1]} px, one tile is {step:g} px of level 0 wide")
    if not mask.any():
        raise SlideError("no tissue")
    if not len(plan.coords):
        raise SlideError(f"no patches: none of {plan.grid} tiles has {config.min_tissue:.0%} tissue (--min-tissue)")
    return plan


def write_patches(chunks: Iterable[bytes | None], plan: TilePlan, writer: SlideWriter, config: IngestConfig) -> int:
    """Write the plan's patches in order; return the number of unreadable tiles.

    Raises:
        SlideError: they are more than ``max_unreadable``, or all.
    """
    unreadable = 0
    tiles = zip(plan.coords.tolist(), plan.tissue.tolist(), chunks, strict=True)
    for (x, y), tissue, chunk in tiles:
        unreadable += chunk is None
        if chunk is not None and unreadable <= config.max_unreadable:
            writer.append_chunk(chunk, x, y, tissue)
    if unreadable > config.max_unreadable or unreadable == len(plan.coords):
        allowed = f"--max-unreadable allows {config.max_unreadable}"
        raise SlideError(f"{unreadable} of {len(plan.coords)} tiles unreadable ({allowed})")
    return unreadable


def quarantine_killed(task: SlideTask, store: PatchStore, config: IngestConfig) -> SlideResult:
    """Quarantine a slide whose process was killed again and again, until the next run."""
    reason = "its process was killed each time while reading it (out of memory?)"
    return _quarantine_until_retry(store, _first_record(task.slide, config), reason)


def _quarantine_until_retry(store: PatchStore, record: SlideRecord, reason: str) -> SlideResult:
    """Quarantine a slide until the next run, unless its patches are up to date.

    An earlier run or another process may have written them.
    """
    stored = stored_slide(store, record.slide_id)
    if stored and stored.record.status == "ok" and _is_up_to_date(stored.record, record):
        log_line(f"{record.slide_id}: {reason}; the patches that the store has of it stay")
        return skip(store, stored)
    return quarantine(store, replace(record, retry=True), reason, keep=True)
