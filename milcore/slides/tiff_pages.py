"""Pages of a TIFF that are the slide: its largest image and its reductions."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tifffile

from milcore.errors import SlideError
from milcore.slides.ome import OmeImage
from milcore.slides.tiff_metadata import is_aperio, ome_image_of

MAX_PAGES = 64
# two images whose widths in um differ by less are one at two scales
_SAME_EXTENT = 0.01
_STORED_ALIKE = ("compression", "photometric", "samplesperpixel", "bitspersample", "planarconfig")


class NumberedPage(NamedTuple):
    """A page, with the number of its main page."""

    number: int
    page: Any


def find_levels(numbered: Sequence[NumberedPage], images: Sequence[OmeImage]) -> list[list[NumberedPage]]:
    """Pages of the largest tiled image and its reductions, largest first.

    Each level is one page, or three of one sample each: red, green and blue of an OME-TIFF.
    """
    tiled = [each for each in numbered if _is_tiled(each.page)]
    if not tiled:
        raise SlideError("no tiled image in the TIFF")
    base = max(tiled, key=lambda each: math.prod(_size(each.page)))
    image = ome_image_of(base.number, images)
    colours = () if image is None or base.page.samplesperpixel != 1 else image.colour_pages
    if colours:
        return _colour_levels(tiled, colours)
    levels = [base]
    for each in sorted(tiled, key=lambda each: -each.page.imagewidth):
        is_smaller = each.page.imagewidth < levels[-1].page.imagewidth
        if is_smaller and _is_reduction(each.page, base.page) and _is_of_image(each, image, images):
            levels.append(each)
    return [[level] for level in levels]


def _is_tiled(page: Any) -> bool:
    return page.is_tiled and not page.tiledepth > 1 and 0 not in _size(page)


def _is_of_image(page: NumberedPage, image: OmeImage | None, images: Sequence[OmeImage]) -> bool:
    """True for a page of no other image, or one of equal extent."""
    other = ome_image_of(page.number, images)
    if other is None or image is None or other == image:
        return True
    if other.is_overview:
        return False
    extents = (image.extent_um, other.extent_um)
    if extents[0] is None or extents[1] is None:
        return False
    return abs(extents[1] / extents[0] - 1.0) <= _SAME_EXTENT


def _colour_levels(tiled: Sequence[NumberedPage], colours: Sequence[int]) -> list[list[NumberedPage]]:
    """Levels of three pages each: the n-th largest of red, green and blue."""
    by_colour = [
        sorted((each for each in tiled if each.number == number), key=lambda each: -each.page.imagewidth)
        for number in colours
    ]
    levels = [list(level) for level in zip(*by_colour, strict=False)]
    whole = [level for level in levels if all(_is_alike(each.page, level[0].page) for each in level)]
    if not whole or len(whole) != len(levels):
        raise SlideError("its red, green and blue are pages of different sizes or codecs")
    return [level for level in whole if level is whole[0] or _is_reduction(level[0].page, whole[0][0].page)]


def _is_alike(page: Any, other: Any) -> bool:
    """True where two pages have equal sizes and tiles, and are stored alike."""
    same = ("imagewidth", "imagelength", "tilewidth", "tilelength", *_STORED_ALIKE)
    return all(getattr(page, name) == getattr(other, name) for name in same)


def unread_images(
    numbered: Sequence[NumberedPage], levels: Sequence[Sequence[NumberedPage]], images: Sequence[OmeImage]
) -> tuple[tuple[int, int], ...]:
    """Sizes of the images beside the one that is read.

    Of an OME-TIFF those of its other images, of another TIFF those of its other pages that are tiled, or in strips, as
    the one that is read, and are no reductions.
    """
    read = {each.number for level in levels for each in level}
    if images:
        return tuple(image.size for image in images if read.isdisjoint(image.pages))
    pages = [each.page for level in levels for each in level]
    others = [each.page for each in numbered if not any(each.page is page for page in pages)]
    return tuple(_size(page) for page in others if page.is_tiled == pages[0].is_tiled and not page.is_reduced)


def check_largest(numbered: Sequence[NumberedPage], base: tifffile.TiffPage) -> None:
    """Check that no page is larger than the tiled one that would be read.

    The macro image of an Aperio export may be larger than the slide.

    Raises:
        SlideError: one is, in strips: the tiled image is its thumbnail.
    """
    width, height = max((_size(each.page) for each in numbered), key=math.prod)
    if width * height > math.prod(_size(base)) and not is_aperio(base):
        raise SlideError(
            f"its largest image, {width:,} x {height:,} px, is stored in strips; convert it to a tiled pyramidal TIFF"
        )


def _size(page: tifffile.TiffPage) -> tuple[int, int]:
    return page.imagewidth, page.imagelength


def numbered_pages(tiff: tifffile.TiffFile) -> Iterator[NumberedPage]:
    """The first ``MAX_PAGES`` pages, each followed by its SubIFDs."""
    for number in range(MAX_PAGES):
        try:
            page: Any = tiff.pages[number]
        except IndexError:
            return
        yield NumberedPage(number, page)
        subpages = page.pages if page.subifds else None
        if subpages is not None:
            yield from (NumberedPage(number, subpages[k]) for k in range(min(MAX_PAGES, len(page.subifds))))


def _is_reduction(page: tifffile.TiffPage, base: tifffile.TiffPage) -> bool:
    """True where a page is the base image, reduced equally in both directions.

    Heights may differ by up to 2 px from the ratio of the widths; both must be stored alike.
    """
    scale = base.imagewidth / page.imagewidth
    alike = all(getattr(page, name) == getattr(base, name) for name in _STORED_ALIKE)
    return alike and abs(base.imagelength / scale - page.imagelength) <= 2.0
