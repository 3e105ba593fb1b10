"""The slide that imported instances were cut from, where the labels name it: its size, scale and thumbnail.

A slide that cannot be read costs the picture only, not the instances; the reason is kept.
"""

import contextlib
from typing import Any, NamedTuple

from milcore.cohort.manifest import Slide
from milcore.errors import SlideError, UnreachableSlideError
from milcore.ingestion.slide import thumbnail_edge
from milcore.runtime import storage
from milcore.slides import open_slide
from milcore.slides.reader import Pixels
from milcore.slides.source import source_version, with_retries


class Picture(NamedTuple):
    """What the slide's own file tells; ``size`` is (width, height) in level-0 px, ``mpp`` um/px at level 0."""

    size: tuple[int, int]
    mpp: float | None
    thumbnail: Pixels


class NoPicture(NamedTuple):
    """Why there is none; no reason where the labels name no file."""

    reason: str | None


def see_slide(slide: Slide) -> dict[str, Any] | None:
    """Size and version of the slide's own file; None where there is none or it cannot be reached."""
    try:
        return source_version(slide.uri)._asdict() if slide.uri else None
    except UnreachableSlideError:
        return None


def take_picture(slide: Slide, patch_size_level0: float | None) -> Picture | NoPicture:
    """Open the slide's own file.

    Args:
        slide: its ``uri`` may be empty.
        patch_size_level0: level-0 px; the thumbnail shows a patch as large as one of ingestion does.
    """
    if not slide.uri:
        return NoPicture(None)
    with contextlib.ExitStack() as stack:
        try:
            source_version(slide.uri)
            path = with_retries(slide.uri, lambda: stack.enter_context(storage.local_file(slide.uri)))
            reader = stack.enter_context(open_slide(path))
            edge = thumbnail_edge(reader.size, patch_size_level0 or max(reader.size))
            return Picture(reader.size, reader.mpp, reader.thumbnail(edge))
        except SlideError as error:
            return NoPicture(str(error))


def scale(slide: Slide, picture: Picture | NoPicture, attrs: dict[str, Any]) -> dict[str, Any]:
    """``size_level0`` and ``mpp`` as far as the labels and the slide's own file tell them, or why the file does not.

    Args:
        slide: its ``mpp`` goes before the file's own.
        picture: of it.
        attrs: known of its patches: ``patch_size_level0``, ``patch_size``.
    """
    told: dict[str, Any] = {}
    if isinstance(picture, Picture):
        told["size_level0"] = list(picture.size)
    elif picture.reason is not None:
        told["no_picture"] = picture.reason
    own = picture.mpp if isinstance(picture, Picture) else None
    for mpp, origin in ((slide.mpp, "labels"), (own, "slide")):
        if mpp is not None:
            return told | {"mpp": {"level0": mpp, "target": None, "patch": _patch_mpp(mpp, attrs), "from": origin}}
    return told


def _patch_mpp(mpp: float, attrs: dict[str, Any]) -> float | None:
    """um/px of a patch as the encoder saw it; None where one of its edges is unknown."""
    if "patch_size_level0" not in attrs or "patch_size" not in attrs:
        return None
    return float(mpp * attrs["patch_size_level0"] / attrs["patch_size"])
