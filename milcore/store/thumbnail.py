"""Picture of a slide of the store: its thumbnail, px without tissue dimmed."""

import io

import numpy as np

from milcore.store.slide_group import SlideGroup

JPEG_QUALITY = 80
_DIM_FACTOR = 0.45


def thumbnail_jpeg(slide: SlideGroup, edge_px: int) -> bytes | None:
    """The picture as JPEG; None where an import has no thumbnail.

    Args:
        slide: in the store.
        edge_px: longest edge of the picture.
    """
    from PIL import Image  # noqa: PLC0415 - stores are read where it is not installed

    if not slide.has_thumbnail:
        return None
    image = Image.fromarray(slide.thumbnail)
    image.thumbnail((edge_px, edge_px), Image.Resampling.BOX)
    tissue = slide.tissue_mask
    if tissue is not None:
        mask = Image.fromarray(tissue).resize(image.size, Image.Resampling.NEAREST)
        dimmed = Image.fromarray((np.asarray(image) * _DIM_FACTOR).astype(np.uint8))
        image = Image.composite(image, dimmed, mask)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
