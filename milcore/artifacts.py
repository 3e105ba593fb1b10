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
JPEG_QUALITY = 82


class Finding(NamedTuple):
    """What is known of a slide beside its patches; ``localisation`` is its within-slide AUROC, None where undefined."""

    patient_id: str
    label: int
    explained: Explained
    region: BaseGeometry | None
    localisation: float | None


def write_attention(folder_uri: str, slide: SlideGroup, weight: np.ndarray) -> pa.Table:
    """Write ``<slide_id>.parquet`` (a row per patch) and ``<slide_id>.png`` (overlay on the thumbnail).

    Args:
        folder_uri: the run's ``attention`` folder.
        slide: in the store.
        weight: shares of attention in the store's order.
    """
    table = attention_table(slide.coords, slide.size_level0, weight, slide.tissue)
    thumbnail = slide.thumbnail
    picture = overlay(thumbnail, _heat(thumbnail, slide, table))
    storage.write_table(storage.join(folder_uri, f"{slide.slide_id}.parquet"), table)
    storage.write_bytes(storage.join(folder_uri, f"{slide.slide_id}.png"), png(picture))
    return table


def slide_view(slide: SlideGroup, finding: Finding, table: pa.Table) -> SlideView:
    """The slide as the report shows it.

    Args:
        slide: in the store.
        finding: what the model and the annotation say.
        table: of ``write_attention``.
    """
    thumbnail = shrink(slide.thumbnail, THUMBNAIL_EDGE)
    width, height = slide.attrs["size_level0"]
    return SlideView(
        slide_id=slide.slide_id,
        patient_id=finding.patient_id,
        label=finding.label,
        probability=finding.explained.probability,
        size_level0=(width, height),
        mpp=slide.attrs["mpp"]["level0"] if "mpp" in slide.attrs else None,
        instances=len(slide),
        half_mass=half_mass(finding.explained.attention),
        localisation=finding.localisation,
        thumbnail=jpeg(thumbnail, JPEG_QUALITY),
        heat=png(_heat(thumbnail, slide, table)),
        outline=() if finding.region is None else rings(finding.region, width / THUMBNAIL_EDGE),
        patches=_top_patches(slide, finding.explained.attention),
    )


def _heat(thumbnail: UInt8[np.ndarray, "row column 3"], slide: SlideGroup, table: pa.Table) -> np.ndarray:
    width, height = slide.attrs["size_level0"]
    return heat_layer((thumbnail.shape[0], thumbnail.shape[1]), (width, height), table)


def _top_patches(slide: SlideGroup, weight: np.ndarray) -> tuple[TopPatch, ...]:
    top = np.argsort(-weight, kind="stable")[:TOP_PATCHES].tolist()
    return tuple(
        TopPatch(
            x=int(slide.coords[k, 0]),
            y=int(slide.coords[k, 1]),
            size=slide.size_level0,
            times_mean=float(weight[k] * len(weight)),
            jpeg=jpeg(shrink(pixels, PATCH_EDGE), JPEG_QUALITY),
        )
        for k, pixels in zip(top, read_patches(slide, top), strict=True)
    )
