"""What attention leaves behind for one slide: the files in the run folder and the view in the report."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from shapely.geometry.base import BaseGeometry

from milcore import storage
from milcore.attention import attention_table, half_mass, heat_layer, overlay, png
from milcore.explain import Explained
from milcore.report import SlideView, TopPatch
from milcore.report.pictures import PATCH_EDGE, THUMBNAIL_EDGE, jpeg, rings, shrink
from milcore.sampling import read_patches
from milcore.store import SlideGroup

TOP_PATCHES = 6
BLANK_EDGE = 1024
JPEG_QUALITY = 82


class Finding(NamedTuple):
    """What is known of a slide beside its patches; ``localisation`` is its within-slide AUROC, None where undefined."""

    patient_id: str
    label: int
    explained: Explained
    region: BaseGeometry | None
    localisation: float | None


def write_attention(folder_uri: str, slide: SlideGroup, weight: np.ndarray) -> pa.Table:
    """Write ``<slide_id>.parquet`` (a row per patch) and, where places are known, ``<slide_id>.png`` (overlay).

    Args:
        folder_uri: the run's ``attention`` folder.
        slide: in the store.
        weight: shares of attention in the store's order.
    """
    coords, size = (slide.coords, slide.size_level0) if slide.has_coords else (None, None)
    table = attention_table(coords, size, weight, slide.tissue)
    storage.write_table(storage.join(folder_uri, f"{slide.slide_id}.parquet"), table)
    canvas = _canvas(slide)
    if canvas is not None:
        picture = overlay(canvas, _heat(canvas, slide, table))
        storage.write_bytes(storage.join(folder_uri, f"{slide.slide_id}.png"), png(picture))
    return table


def slide_view(slide: SlideGroup, finding: Finding, table: pa.Table) -> SlideView:
    """The slide as the report shows it.

    Args:
        slide: in the store.
        finding: what the model and the annotation say.
        table: of ``write_attention``.
    """
    canvas = _canvas(slide)
    thumbnail = None if canvas is None else shrink(canvas, THUMBNAIL_EDGE)
    size = _size_level0(slide)
    return SlideView(
        slide_id=slide.slide_id,
        patient_id=finding.patient_id,
        label=finding.label,
        probability=finding.explained.probability,
        size_level0=size,
        mpp=slide.attrs["mpp"]["level0"] if "mpp" in slide.attrs else None,
        instances=len(slide),
        half_mass=half_mass(finding.explained.attention),
        localisation=finding.localisation,
        thumbnail=None if thumbnail is None else jpeg(thumbnail, JPEG_QUALITY),
        heat=None if thumbnail is None else png(_heat(thumbnail, slide, table)),
        outline=() if finding.region is None or size is None else rings(finding.region, size[0] / THUMBNAIL_EDGE),
        patches=_top_patches(slide, finding.explained.attention),
    )


def _size_level0(slide: SlideGroup) -> tuple[int, int] | None:
    size = slide.attrs.get("size_level0")
    return None if size is None else (size[0], size[1])


def _canvas(slide: SlideGroup) -> UInt8[np.ndarray, "row column 3"] | None:
    """What attention is drawn on: the thumbnail, white where an import has places only, None without places."""
    if not slide.has_coords:
        return None
    if slide.has_thumbnail:
        return slide.thumbnail
    width, height = slide.attrs["size_level0"]
    scale = max(1.0, max(width, height) / BLANK_EDGE)
    return np.full((max(1, round(height / scale)), max(1, round(width / scale)), 3), 255, np.uint8)


def _heat(thumbnail: UInt8[np.ndarray, "row column 3"], slide: SlideGroup, table: pa.Table) -> np.ndarray:
    width, height = slide.attrs["size_level0"]
    return heat_layer((thumbnail.shape[0], thumbnail.shape[1]), (width, height), table)


def _top_patches(slide: SlideGroup, weight: np.ndarray) -> tuple[TopPatch, ...]:
    if not slide.has_patches:
        return ()
    top = np.argsort(-weight, kind="stable")[:TOP_PATCHES].tolist()
    return tuple(
        TopPatch(
            x=int(slide.coords[k, 0]) if slide.has_coords else None,
            y=int(slide.coords[k, 1]) if slide.has_coords else None,
            size=slide.size_level0 if slide.has_coords else None,
            times_mean=float(weight[k] * len(weight)),
            jpeg=jpeg(shrink(pixels, PATCH_EDGE), JPEG_QUALITY),
        )
        for k, pixels in zip(top, read_patches(slide, top), strict=True)
    )
