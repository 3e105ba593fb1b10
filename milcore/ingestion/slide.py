"""Ingestion of one slide: tissue, plan, patches, status."""

import contextlib
import hashlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from milcore.cohort.manifest import Slide
from milcore.config import IngestConfig
from milcore.errors import SlideError, UnreachableSlideError
from milcore.ingestion.extract import choose_codec, extract, sample
from milcore.ingestion.stain import Normaliser, estimate
from milcore.ingestion.tiling import TilePlan, plan_tiles, tile_size_level0
from milcore.ingestion.tissue import METHOD, Mask, tissue_mask
from milcore.runtime.progress import log_line
from milcore.slides import RemoteFile, SlideReader, find_remote_slide, open_slide
from milcore.slides.mpp import COARSEST_MPP, FINEST_MPP, SAME_SCALE
from milcore.slides.reader import Pixels
from milcore.slides.resample import area_resize
from milcore.slides.source import fetch, source_version
from milcore.store.store import PatchStore, SlideStatus
from milcore.store.writer import SlideWriter

MASK_PX_PER_TILE = 16
THUMBNAIL_EDGES_PX = (1024, 4096)


class SlideOutcome(NamedTuple):
    """How one slide ended; ``skipped`` where an earlier run's result was still good."""

    slide_id: str
    status: Literal["ok", "quarantined"]
    reason: str | None
    patches: int
    skipped: bool


class _Work(NamedTuple):
    """One slide to bring into a store, on so many threads."""

    slide: Slide
    store: PatchStore
    config: IngestConfig
    threads: int


def ingest_slide(slide: Slide, store: PatchStore, config: IngestConfig, threads: int = 1) -> SlideOutcome:
    """Bring one slide into the store on so many threads, or into quarantine with its reason."""
    parameters = _parameters(slide, config)
    attrs: dict[str, Any] = {"parameters": parameters, "source": {"uri": slide.uri}}
    try:
        seen = source_version(slide.uri)
        before = store.status(slide.slide_id)
        if before and _still_good(before, parameters) and store.source(slide.slide_id) == seen._asdict():
            return _outcome(slide, before, skipped=True)
        outcome = _ingest_reached(_Work(slide, store, config, threads), attrs, before)
    except UnreachableSlideError as error:
        return _set_aside(slide, store, str(error), attrs)
    except SlideError as error:
        store.quarantine(slide.slide_id, str(error), attrs)
        outcome = SlideOutcome(slide.slide_id, "quarantined", str(error), 0, skipped=False)
    store.write_source(slide.slide_id, seen._asdict())
    return outcome


def _ingest_reached(work: _Work, attrs: dict[str, Any], before: SlideStatus | None) -> SlideOutcome:
    """Ingest from where it lies, or a local copy; a source whose version changed but not its content is left as it is.

    What names the content is a copy's sha256; of what is never read whole, the storage's ETag.
    """
    slide = work.slide
    with contextlib.ExitStack() as stack:
        remote = find_remote_slide(slide.uri, work.config.reader)
        if remote is None:
            path, sha256 = fetch(slide.uri, stack)
            attrs["source"] = {"uri": slide.uri, "size": path.stat().st_size, "sha256": sha256}
        else:
            attrs["source"] = {"uri": slide.uri, "size": remote.size, "etag": remote.etag}
        if before and _still_good(before, attrs["parameters"]) and before.attrs["source"] == attrs["source"]:
            return _outcome(slide, before, skipped=True)
        with open_slide(remote or path, work.config.reader) as reader:
            patches = _ingest_open(work, reader, attrs, remote)
    return SlideOutcome(slide.slide_id, "ok", None, patches, skipped=False)


def _parameters(slide: Slide, config: IngestConfig) -> dict[str, Any]:
    return {**config.model_dump(), "slide_mpp": slide.mpp}


def _still_good(status: SlideStatus, parameters: dict[str, Any]) -> bool:
    """Whether an earlier result would come out the same; settings that did not touch an ok slide may differ."""
    if status.attrs.get("retry") or "imported" in status.attrs:
        return False
    free = set()
    if status.state == "ok":
        free |= {"default_mpp"} if status.attrs["mpp"]["from"] != "default_mpp" else set()
        free |= {"max_unreadable"} if status.attrs["counts"]["unreadable"] <= parameters["max_unreadable"] else set()
    before = status.attrs["parameters"]
    return all(before.get(name) == value for name, value in parameters.items() if name not in free)


def _outcome(slide: Slide, status: SlideStatus, *, skipped: bool) -> SlideOutcome:
    return SlideOutcome(slide.slide_id, status.state, status.reason, status.attrs.get("patches", 0), skipped)


def _ingest_open(work: _Work, reader: SlideReader, attrs: dict[str, Any], remote: RemoteFile | None) -> int:
    """Plan an open slide and write its patches; the number written."""
    slide, store, config, threads = work
    mpp, origin = _mpp(slide, reader, config)
    step = tile_size_level0(mpp, config)
    thumbnail = reader.thumbnail(thumbnail_edge(reader.size, step))
    mask = mask_of(thumbnail, reader.size, step)
    plan = _plan(reader.size, mpp, mask, config)
    storing = choose_codec(reader, plan, config)
    attrs |= _told(reader, mpp, origin, config) | {"codec_instead": storing.instead, "stain_normalisation": None}
    if config.stain_normalisation == "macenko":
        stains = estimate(sample(reader, plan, config))
        storing = storing._replace(normaliser=Normaliser(stains))
        attrs["stain_normalisation"] = stains.told
    with store.writer(slide.slide_id, attrs, config.patch_size, storing.codec, config.jpeg_quality) as writer:
        writer.write_thumbnail(thumbnail)
        writer.write_mask(mask)
        # tiles that are only copied wait for Python's lock, unless they come over the network
        threads = 1 if storing.codec == "passthrough" and remote is None else threads
        with contextlib.closing(extract(reader, plan, config, storing, threads)) as chunks:
            unreadable = write_patches(chunks, plan, writer, config)
        if remote is not None:
            remote.check_unchanged()
        written = len(plan.coords) - unreadable
        writer.attrs["counts"] = {
            "grid": plan.grid,
            "tissue": len(plan.coords),
            "unreadable": unreadable,
            "patches": written,
        }
    return written


def _told(reader: SlideReader, mpp: float, origin: str, config: IngestConfig) -> dict[str, Any]:
    """What is recorded of a slide: its reader, scale and how tissue was found."""
    step = tile_size_level0(mpp, config)
    return {
        "reader": reader.backend,
        "size_level0": list(reader.size),
        "mpp": {
            "level0": mpp,
            "target": config.mpp,
            "patch": config.mpp if step != config.patch_size else mpp,
            "from": origin,
        },
        # (x, y, 1) in level-0 px -> um
        "level0_affine": [[mpp, 0.0, 0.0], [0.0, mpp, 0.0]],
        "patch_size_level0": step,
        # the profile is kept out of the pixels, which stay as scanned
        "icc_sha256": None if reader.icc is None else hashlib.sha256(reader.icc).hexdigest(),
        "tissue": {**METHOD, "mask_px_per_tile": MASK_PX_PER_TILE, "min_tissue": config.min_tissue},
    }


def _mpp(slide: Slide, reader: SlideReader, config: IngestConfig) -> tuple[float, str]:
    """um/px of level 0 and where it is from: the manifest before the slide's own, before the default."""
    for mpp, origin in ((slide.mpp, "manifest"), (reader.mpp, "slide"), (config.default_mpp, "default_mpp")):
        if mpp is not None:
            if mpp > config.mpp * (1.0 + SAME_SCALE):
                raise SlideError(
                    f"too coarse: {mpp:g} um/px (from the {origin}) at its finest, {config.mpp:g} um/px asked for; "
                    "it would have to be magnified"
                )
            return mpp, origin
    told = f"the slide tells no um/px between {FINEST_MPP:g} and {COARSEST_MPP:g}"
    raise SlideError(f"no mpp: {told}; give --default-mpp, or an mpp in the manifest")


def thumbnail_edge(size: tuple[int, int], step: float) -> int:
    """Longer edge of the thumbnail, such that a tile measures MASK_PX_PER_TILE px in it, within bounds."""
    low, high = THUMBNAIL_EDGES_PX
    return min(max(size), high, max(low, round(MASK_PX_PER_TILE * max(size) / step)))


def mask_of(thumbnail: Pixels, size: tuple[int, int], step: float) -> Mask:
    """Where a slide's thumbnail shows tissue, at about MASK_PX_PER_TILE px a tile."""
    height, width = thumbnail.shape[:2]
    shrink = max(1.0, max(width, height) * step / (MASK_PX_PER_TILE * max(size)))
    small = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    return tissue_mask(area_resize(thumbnail, (0.0, 0.0, width, height), small))


def _plan(size: tuple[int, int], mpp: float, mask: Mask, config: IngestConfig) -> TilePlan:
    """The slide's tiles with tissue.

    Raises:
        SlideError: there are none; why.
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
    """Write the plan's patches in order; the number of tiles that could not be read.

    Raises:
        SlideError: they are more than ``max_unreadable``, or all.
    """
    unreadable = 0
    places = zip(plan.coords.tolist(), plan.tissue.tolist(), chunks, strict=True)
    for (x, y), tissue, chunk in places:
        unreadable += chunk is None
        if chunk is not None and unreadable <= config.max_unreadable:
            writer.append_chunk(chunk, x, y, tissue)
    if unreadable > config.max_unreadable or unreadable == len(plan.coords):
        allowed = f"--max-unreadable allows {config.max_unreadable}"
        raise SlideError(f"{unreadable} of {len(plan.coords)} tiles unreadable ({allowed})")
    return unreadable


def killed(slide: Slide, store: PatchStore, config: IngestConfig) -> SlideOutcome:
    """Quarantine a slide whose process was killed twice; it is not tried again in this run."""
    reason = "its process was killed twice while reading it (out of memory?)"
    return _set_aside(slide, store, reason, {"parameters": _parameters(slide, config), "source": {"uri": slide.uri}})


def _set_aside(slide: Slide, store: PatchStore, reason: str, attrs: dict[str, Any]) -> SlideOutcome:
    """Quarantine a slide until the next time; one that is there all the same, by another process or before, stays."""
    now = store.status(slide.slide_id)
    if now and now.state == "ok" and _still_good(now, attrs["parameters"]):
        log_line(f"{slide.slide_id}: {reason}; the patches that the store has of it stay")
        return _outcome(slide, now, skipped=True)
    store.quarantine(slide.slide_id, reason, attrs | {"retry": True}, keep=True)
    return SlideOutcome(slide.slide_id, "quarantined", reason, 0, skipped=False)
