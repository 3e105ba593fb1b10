"""Attention files and report view of one slide."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from shapely.geometry.base import BaseGeometry

from milcore.config import AnnotationOrigin, AttentionFormat
from milcore.evaluation.attention.exports import HeatMap, geojson, ome_tiff
from milcore.evaluation.attention.maps import attention_table, half_mass, heat_layer, overlay, png
from milcore.evaluation.attention.patch_flipping import normalised_entropy
from milcore.evaluation.report import PictureSizes, ShownPatch, SlideView
from milcore.evaluation.report.pictures import jpeg, rings, shrink
from milcore.runtime import storage
from milcore.store.sampling import read_patches
from milcore.store.slide_group import SlideGroup
from milcore.store.store import write_columns
from milcore.training import run_files

BLANK_EDGE = 1024
JPEG_QUALITY = 80
SUFFIXES: dict[AttentionFormat, str] = {
    "parquet": "parquet", "png": "png", "geojson": "geojson", "ome-tiff": "ome.tiff", "zarr": "zarr",
}  # fmt: skip


class AttentionFiles(NamedTuple):
    """Files of attention to write.

    Args:
        formats: ``parquet`` and ``zarr`` hold a row per patch in the store's order.
        origin: corner that coordinates in GeoJSON and the OME-TIFF begin at; those of the others begin at the slide's.
    """

    formats: Sequence[AttentionFormat]
    origin: AnnotationOrigin


class Background:
    """Picture that a slide's attention is drawn over.

    It is read once, when it is asked for.
    """

    def __init__(self, slide: SlideGroup) -> None:
        self._slide = slide

    @cached_property
    def pixels(self) -> UInt8[np.ndarray, "row column 3"] | None:
        """The thumbnail; None where the coordinates of patches are unknown.

        White where an import has coordinates only.
        """
        slide = self._slide
        if not slide.has_coords:
            return None
        if slide.has_thumbnail:
            return slide.thumbnail
        width, height = slide.size_level0
        scale = max(1.0, max(width, height) / BLANK_EDGE)
        return np.full((max(1, round(height / scale)), max(1, round(width / scale)), 3), 255, np.uint8)


class WrittenAttention(NamedTuple):
    """Table of a slide's attention, background and digests of its pictures.

    Args:
        digests: sha256 by file name.
    """

    table: pa.Table
    background: Background
    digests: dict[str, str]


class SlideResult(NamedTuple):
    """Label, prediction, attention and annotation of one slide.

    Args:
        probabilities: of every class.
        std: standard deviation of the predicted class's probability over the folds, None for one model.
        attention: share of each patch, in the store's order.
        region: annotated area, level-0 px, None without one.
        localisation: within-slide AUROC of attention against instance labels, None where undefined.
    """

    patient_id: str
    label: int
    predicted_class: int
    probabilities: tuple[float, ...]
    std: float | None
    attention: np.ndarray
    region: BaseGeometry | None
    localisation: float | None


class AttentionFolder:
    """Folder of the attention of many slides.

    What stood there before is listed once, when that is asked for, and not for every slide.

    Args:
        uri: of the folder.
        files: that are written there for each slide.
    """

    def __init__(self, uri: str, files: AttentionFiles) -> None:
        self.uri, self.files = uri, files

    @cached_property
    def _names(self) -> dict[str, set[str]]:
        """Names below each Zarr group, and files by their own name."""
        below: dict[str, set[str]] = {}
        for file in storage.files(self.uri):
            name, *rest = file.removeprefix(f"{self.uri}/").split("/", 2)
            below.setdefault(name, set()).update(rest[:1])
        return below

    def arrays(self, slide_id: str) -> set[str]:
        """Names in the Zarr group of a slide; empty where there is none."""
        return self._names.get(f"{slide_id}.zarr", set())

    def remove(self, slide_id: str) -> None:
        """Remove the files of a slide's attention."""
        for file_format, suffix in SUFFIXES.items():
            name = f"{slide_id}.{suffix}"
            if name in self._names:
                (storage.remove_folder if file_format == "zarr" else storage.remove)(storage.join(self.uri, name))


def write_attention(
    folder: AttentionFolder,
    slide: SlideGroup,
    weight: np.ndarray,
    extra_columns: Mapping[str, np.ndarray] | None = None,
    *,
    is_new: bool = False,
) -> WrittenAttention:
    """Write ``<slide_id>.<suffix>`` in each format.

    Formats that draw are written only where the coordinates of patches are known.

    Args:
        folder: the run's ``attention``.
        slide: in the store.
        weight: shares of attention in the store's order.
        extra_columns: of the table, by name.
        is_new: the folder holds no attention of the slide, so that it need not be listed.
    """
    coords, size = (slide.coords, slide.patch_size_level0) if slide.has_coords else (None, None)
    table = attention_table(coords, size, weight, slide.tissue, extra_columns)
    background, digests = Background(slide), {}
    for file_format in folder.files.formats:
        name = f"{slide.slide_id}.{SUFFIXES[file_format]}"
        uri = storage.join(folder.uri, name)
        if file_format == "parquet":
            storage.write_table(uri, table)
        elif file_format == "zarr":
            columns = {column: table[column].to_numpy() for column in table.column_names}
            attrs = {"slide_id": slide.slide_id, "rows": "as in the store's patches"}
            write_columns(uri, columns, attrs, () if is_new else folder.arrays(slide.slide_id))
        else:
            data = _picture_file(file_format, background, slide, table, folder.files.origin)
            if data is not None:
                storage.write_bytes(uri, data)
                digests[name] = run_files.sha256(data)
    return WrittenAttention(table, background, digests)


def _picture_file(
    file_format: AttentionFormat, background: Background, slide: SlideGroup, table: pa.Table, origin: AnnotationOrigin
) -> bytes | None:
    """The file in one format; None where the coordinates of patches are unknown."""
    if not slide.has_coords or not len(table):
        return None
    if file_format == "png":
        pixels = background.pixels
        return None if pixels is None else png(overlay(pixels, _heat(pixels, slide, table)))
    table = table if origin == "slide" else _shifted(table, slide.bounds_corner)
    if file_format == "geojson":
        return geojson(slide.slide_id, table)
    if slide.record.size_level0 is None:
        return None
    size = slide.size_level0 if origin == "slide" else slide.bounds[2:]
    return ome_tiff(slide.slide_id, HeatMap(size, table), _mpp(slide))


def _shifted(table: pa.Table, corner: tuple[int, int]) -> pa.Table:
    """The table with coordinates that begin at a corner, level-0 px."""
    for name, start in zip("xy", corner, strict=True):
        shifted = pa.array(table[name].to_numpy() - start, pa.int32())
        table = table.set_column(table.column_names.index(name), name, shifted)
    return table


def slide_view(
    slide: SlideGroup, result: SlideResult, written: WrittenAttention, sizes: PictureSizes, choice: str | None = ""
) -> SlideView:
    """View of one slide in the report.

    Args:
        slide: in the store.
        result: of the slide.
        written: of ``write_attention``.
        sizes: of its pictures.
        choice: as in ``SlideView``; None makes no pictures.
    """
    view = SlideView(
        slide_id=slide.slide_id,
        patient_id=result.patient_id,
        label=result.label,
        predicted_class=result.predicted_class,
        probabilities=result.probabilities,
        std=result.std,
        size_level0=slide.record.size_level0,
        mpp=_mpp(slide),
        instances=len(slide),
        half_mass=half_mass(result.attention),
        entropy=normalised_entropy(result.attention),
        localisation=result.localisation,
        thumbnail=None,
        heat=None,
        outline=(),
        patches=(),
        lowest=(),
        choice=choice,
    )
    return view if choice is None else _with_pictures(view, slide, result, written, sizes)


def _with_pictures(
    view: SlideView, slide: SlideGroup, result: SlideResult, written: WrittenAttention, sizes: PictureSizes
) -> SlideView:
    pixels, size = written.background.pixels, view.size_level0
    thumbnail = None if pixels is None else shrink(pixels, sizes.thumbnail_edge)
    order = np.argsort(-result.attention, kind="stable").tolist()
    shown = min(sizes.patches, len(order))
    lowest = order[::-1][: min(sizes.patches, max(len(order) - shown, 0))]
    return replace(
        view,
        thumbnail=None if thumbnail is None else jpeg(thumbnail, JPEG_QUALITY),
        heat=None if thumbnail is None else png(_heat(thumbnail, slide, written.table)),
        outline=() if result.region is None or size is None else rings(result.region, size[0] / sizes.thumbnail_edge),
        patches=_patches(slide, result.attention, order[:shown], sizes),
        lowest=_patches(slide, result.attention, lowest, sizes),
    )


def _mpp(slide: SlideGroup) -> float | None:
    return None if slide.record.mpp is None else slide.record.mpp.level0


def _heat(thumbnail: UInt8[np.ndarray, "row column 3"], slide: SlideGroup, table: pa.Table) -> np.ndarray:
    width, height = slide.size_level0
    return heat_layer((thumbnail.shape[0], thumbnail.shape[1]), (width, height), table)


def _patches(
    slide: SlideGroup, weight: np.ndarray, indices: Sequence[int], sizes: PictureSizes
) -> tuple[ShownPatch, ...]:
    if not slide.has_patches or not indices:
        return ()
    return tuple(
        ShownPatch(
            x=int(slide.coords[k, 0]) if slide.has_coords else None,
            y=int(slide.coords[k, 1]) if slide.has_coords else None,
            size=slide.patch_size_level0 if slide.has_coords else None,
            times_mean=float(weight[k] * len(weight) / weight.sum()),
            jpeg=jpeg(shrink(pixels, sizes.patch_edge), JPEG_QUALITY),
        )
        for k, pixels in zip(indices, read_patches(slide, indices), strict=True)
    )
