"""What attention leaves behind for one slide: the files in the run folder and the view in the report."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from shapely.geometry.base import BaseGeometry

from milcore.config import AttentionFormat
from milcore.evaluation.attention.exports import geojson, heat_factor, heat_map, ome_tiff
from milcore.evaluation.attention.maps import attention_table, half_mass, heat_layer, overlay, png
from milcore.evaluation.attention.patch_flipping import normalised_entropy
from milcore.evaluation.report import Picture, ShownPatch, SlideView
from milcore.evaluation.report.pictures import jpeg, rings, shrink
from milcore.runtime import storage
from milcore.store.sampling import read_patches
from milcore.store.slide_group import SlideGroup
from milcore.store.store import write_columns

BLANK_EDGE = 1024
JPEG_QUALITY = 80
SUFFIXES: dict[AttentionFormat, str] = {
    "parquet": "parquet", "png": "png", "geojson": "geojson", "ome-tiff": "ome.tiff", "zarr": "zarr",
}  # fmt: skip


class Finding(NamedTuple):
    """What is known of a slide beside its patches.

    Args:
        called: the class the model calls it.
        region: annotated area, level-0 px, None without one.
        localisation: within-slide AUROC of attention against instance labels, None where undefined.
    """

    patient_id: str
    label: int
    called: int
    probabilities: tuple[float, ...]
    spread: float | None
    attention: np.ndarray
    region: BaseGeometry | None
    localisation: float | None


def write_attention(
    folder_uri: str,
    slide: SlideGroup,
    weight: np.ndarray,
    formats: Sequence[AttentionFormat],
    more: Mapping[str, np.ndarray] | None = None,
) -> pa.Table:
    """Write ``<slide_id>.<form>`` in every form asked for; those that draw, only where places are known.

    Args:
        folder_uri: the run's ``attention`` folder.
        slide: in the store.
        weight: shares of attention in the store's order.
        formats: ``parquet`` and ``zarr`` hold a row per patch in the store's order.
        more: further columns of the table.
    """
    coords, size = (slide.coords, slide.size_level0) if slide.has_coords else (None, None)
    table = attention_table(coords, size, weight, slide.tissue, more)
    for form in formats:
        if form == "parquet":
            storage.write_table(storage.join(folder_uri, f"{slide.slide_id}.parquet"), table)
            continue
        if form == "zarr":
            columns = {name: table[name].to_numpy() for name in table.column_names}
            uri = storage.join(folder_uri, f"{slide.slide_id}.zarr")
            write_columns(uri, columns, {"slide_id": slide.slide_id, "rows": "as in the store's patches"})
            continue
        data = _file(form, slide, table)
        if data is not None:
            storage.write_bytes(storage.join(folder_uri, f"{slide.slide_id}.{SUFFIXES[form]}"), data)
    return table


def _file(form: AttentionFormat, slide: SlideGroup, table: pa.Table) -> bytes | None:
    """The file in one form; None where it needs places and there are none."""
    canvas = _canvas(slide)
    if canvas is None or not len(table):
        return None
    if form == "png":
        return png(overlay(canvas, _heat(canvas, slide, table)))
    if form == "geojson":
        return geojson(slide.slide_id, table)
    size = _size_level0(slide)
    return None if size is None else ome_tiff(
        slide.slide_id, heat_map(size, table), heat_factor(slide.size_level0), _mpp(slide)
    )  # fmt: skip


def slide_view(slide: SlideGroup, finding: Finding, table: pa.Table, picture: Picture) -> SlideView:
    """The slide as the report shows it.

    Args:
        slide: in the store.
        finding: what the model and the annotation say.
        table: of ``write_attention``.
        picture: how large its pictures may be.
    """
    canvas = _canvas(slide)
    thumbnail = None if canvas is None else shrink(canvas, picture.thumbnail_edge)
    size = _size_level0(slide)
    order = np.argsort(-finding.attention, kind="stable").tolist()
    shown = min(picture.patches, len(order))
    lowest = order[::-1][: min(picture.patches, max(len(order) - shown, 0))]
    return SlideView(
        slide_id=slide.slide_id,
        patient_id=finding.patient_id,
        label=finding.label,
        called=finding.called,
        probabilities=finding.probabilities,
        spread=finding.spread,
        size_level0=size,
        mpp=_mpp(slide),
        instances=len(slide),
        half_mass=half_mass(finding.attention),
        entropy=normalised_entropy(finding.attention),
        localisation=finding.localisation,
        thumbnail=None if thumbnail is None else jpeg(thumbnail, JPEG_QUALITY),
        heat=None if thumbnail is None else png(_heat(thumbnail, slide, table)),
        outline=()
        if finding.region is None or size is None
        else rings(finding.region, size[0] / picture.thumbnail_edge),
        patches=_patches(slide, finding.attention, order[:shown], picture),
        lowest=_patches(slide, finding.attention, lowest, picture),
    )


def _size_level0(slide: SlideGroup) -> tuple[int, int] | None:
    size = slide.attrs.get("size_level0")
    return None if size is None else (size[0], size[1])


def _mpp(slide: SlideGroup) -> float | None:
    return slide.attrs["mpp"]["level0"] if "mpp" in slide.attrs else None


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


def _patches(slide: SlideGroup, weight: np.ndarray, places: Sequence[int], picture: Picture) -> tuple[ShownPatch, ...]:
    if not slide.has_patches or not places:
        return ()
    return tuple(
        ShownPatch(
            x=int(slide.coords[k, 0]) if slide.has_coords else None,
            y=int(slide.coords[k, 1]) if slide.has_coords else None,
            size=slide.size_level0 if slide.has_coords else None,
            times_mean=float(weight[k] * len(weight) / weight.sum()),
            jpeg=jpeg(shrink(pixels, picture.patch_edge), JPEG_QUALITY),
        )
        for k, pixels in zip(places, read_patches(slide, places), strict=True)
    )
