"""Size, scale and thumbnail of an imported slide, from its own file.

The labels may name that file. Where it cannot be read, only these are missing, not the instances; the reason is
recorded.
"""

import contextlib
from dataclasses import replace
from typing import Any, NamedTuple

from milcore.cohort.manifest import Slide
from milcore.errors import SlideError, UnreachableSlideError
from milcore.ingestion.slide import thumbnail_edge
from milcore.slides import open_slide
from milcore.slides.reader import Bounds, Pixels
from milcore.slides.source import local_path, source_version
from milcore.store.slide_record import SlideMpp, SlideRecord


class SlideImage(NamedTuple):
    """Content of the slide's own file.

    Args:
        size: (width, height) in level-0 px.
        bounds: the part that was scanned.
        mpp: um/px at level 0; None where the file has none.
        thumbnail: of the whole slide.
    """

    size: tuple[int, int]
    bounds: Bounds
    mpp: float | None
    thumbnail: Pixels


class NoSlideImage(NamedTuple):
    """Reason why there is no image; None where the labels name no file."""

    reason: str | None


def slide_version(slide: Slide) -> dict[str, Any] | None:
    """Version of the slide's own file; None without a file in reach."""
    try:
        return source_version(slide.uri)._asdict() if slide.uri else None
    except UnreachableSlideError:
        return None


def read_slide_image(slide: Slide, patch_size_level0: float | None) -> SlideImage | NoSlideImage:
    """Read the slide's own file.

    Args:
        slide: of the cohort; its ``uri`` may be empty.
        patch_size_level0: level-0 px; sets the thumbnail's size as in ingestion.
    """
    if not slide.uri:
        return NoSlideImage(None)
    with contextlib.ExitStack() as stack:
        try:
            source_version(slide.uri)
            reader = stack.enter_context(open_slide(local_path(slide.uri, stack)))
            edge = thumbnail_edge(reader.size, patch_size_level0 or max(reader.size))
            return SlideImage(reader.size, reader.bounds, reader.mpp, reader.thumbnail(edge))
        except SlideError as error:
            return NoSlideImage(str(error))


def slide_mpp(slide: Slide) -> float | None:
    """um/px of a slide at level 0.

    Of the labels, else of its own file; None where neither has it.
    """
    if slide.mpp is not None:
        return slide.mpp
    image = read_slide_image(slide, None)
    return image.mpp if isinstance(image, SlideImage) else None


def with_scale(record: SlideRecord, slide: Slide, image: SlideImage | NoSlideImage) -> SlideRecord:
    """Add size, bounds and scale to a record, or why they are unknown.

    Args:
        record: with ``patch_size_level0`` and ``patch_size``, if known.
        slide: its ``mpp`` takes precedence over that of the file.
        image: of the slide.
    """
    if isinstance(image, SlideImage):
        record = replace(record, size_level0=image.size, bounds=image.bounds)
    elif image.reason is not None:
        record = replace(record, no_picture=image.reason)
    file_mpp = image.mpp if isinstance(image, SlideImage) else None
    for mpp, origin in ((slide.mpp, "labels"), (file_mpp, "slide")):
        if mpp is not None:
            return replace(record, mpp=SlideMpp(mpp, None, _patch_mpp(mpp, record), origin))
    return record


def _patch_mpp(mpp: float, record: SlideRecord) -> float | None:
    """um/px of a patch; None where one of its edges is unknown."""
    if record.patch_size_level0 is None or record.patch_size is None:
        return None
    return float(mpp * record.patch_size_level0 / record.patch_size)
