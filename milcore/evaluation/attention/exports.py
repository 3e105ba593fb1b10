"""GeoJSON tiles and a pyramidal OME-TIFF heat map of attention, for QuPath.

No I/O. Coordinates are level-0 px. The heat map has one pixel per ``2**k`` level-0 px, from the same origin, and
carries its physical pixel size, so that a viewer that knows scales lays it over the slide.
"""

import io
import json
import math
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import tifffile
from jaxtyping import UInt8
from PIL import Image

from milcore.evaluation.attention.maps import colour_of

PIXELS_PER_PATCH = 16
TILE = 256
UM_PER_CM = 10_000.0
MEASUREMENTS = {
    "weight": "Attention weight",
    "percentile": "Attention percentile",
    "score": "Attention score",
    "instance_probability": "Instance probability",
    "leave_one_out": "Leave-one-out log-odds",
}


def geojson(slide_id: str, table: pa.Table) -> bytes:
    """FeatureCollection (RFC 7946) with a QuPath tile per patch, its values as measurements.

    Coordinates are level-0 px, x to the right and y down, as QuPath takes them; the standard's longitude and latitude
    do not apply to a slide.

    Args:
        slide_id: the ids of the features are derived from it.
        table: of ``attention_table``, with coordinates.
    """
    colours = np.rint(colour_of(table["weight"].to_numpy())).astype(int).tolist()
    features = [
        _feature(f"{slide_id}/{k}", row, colour)
        for k, (row, colour) in enumerate(zip(table.to_pylist(), colours, strict=True))
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")).encode()


def _feature(name: str, row: dict[str, Any], colour: list[int]) -> dict[str, object]:
    left, top = row["x"], row["y"]
    right, bottom = left + row["size"], top + row["size"]
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    measurements = {
        title: row[key] for key, title in MEASUREMENTS.items() if row.get(key) is not None and math.isfinite(row[key])
    }
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "tile",
            "color": colour,
            "measurements": {title: float(f"{value:.6g}") for title, value in measurements.items()},
        },
    }


def heat_factor(patch_size_level0: float) -> int:
    """Level-0 px under one pixel of the heat map.

    The power of two that leaves a patch 16 to 32 px, at least 1.
    """
    factor: int = 2 ** max(0, math.floor(math.log2(patch_size_level0 / PIXELS_PER_PATCH)))
    return factor


def heat_map(size_level0: tuple[int, int], table: pa.Table) -> UInt8[np.ndarray, "row column 3"]:
    """Attention in colour on white, one pixel per ``heat_factor`` level-0 px.

    The picture is ``ceil(size / heat_factor)`` px; colour follows weight / largest weight.

    Args:
        size_level0: (width, height) of the slide, level-0 px.
        table: of ``attention_table``, with coordinates.
    """
    factor = heat_factor(float(table["size"][0].as_py()))
    width, height = (math.ceil(edge / factor) for edge in size_level0)
    picture = np.full((height, width, 3), 255, np.uint8)
    weight = table["weight"].to_numpy()
    paint = np.rint(colour_of(weight)).astype(np.uint8)
    x, y, size = (table[name].to_numpy() / factor for name in ("x", "y", "size"))
    left, top = (np.maximum(np.rint(edge).astype(int), 0) for edge in (x, y))
    right, bottom = (np.maximum(np.rint(edge).astype(int), 0) for edge in (x + size, y + size))
    for k in np.argsort(weight, kind="stable"):
        picture[top[k] : bottom[k], left[k] : right[k]] = paint[k]
    return picture


def ome_tiff(slide_id: str, picture: UInt8[np.ndarray, "row column 3"], factor: int, mpp: float | None) -> bytes:
    """Tiled, losslessly compressed OME-TIFF with its halvings as SubIFDs.

    Equal input gives equal bytes.

    Args:
        slide_id: the image's name.
        picture: of ``heat_map``.
        factor: of ``heat_factor``.
        mpp: um/px of the slide's level 0, None where unknown.
    """
    levels = 1 + max(0, math.ceil(math.log2(max(picture.shape[:2]) / TILE)))
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, ome=True) as tiff:
        for level in range(levels):
            pixels = picture if level == 0 else np.asarray(Image.fromarray(picture).reduce(2**level))
            per_cm = None if mpp is None else UM_PER_CM / (mpp * factor * 2**level)
            tiff.write(
                pixels,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="deflate",
                predictor=True,
                subifds=levels - 1 if level == 0 else None,
                subfiletype=int(level > 0),
                metadata=_ome_metadata(slide_id, factor, mpp) if level == 0 else None,
                resolution=None if per_cm is None else (per_cm, per_cm),
                resolutionunit=None if per_cm is None else "CENTIMETER",
                software="milcore",
            )
    return sink.getvalue()


def _ome_metadata(slide_id: str, factor: int, mpp: float | None) -> dict[str, object]:
    name = f"attention of {slide_id}"
    metadata: dict[str, object] = {
        "axes": "YXS",
        "Name": name,
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}",
    }
    if mpp is None:
        return metadata
    size = mpp * factor
    return metadata | {
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": "µm",
    }
