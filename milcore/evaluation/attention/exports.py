"""GeoJSON tiles and a pyramidal OME-TIFF heat map of attention, for QuPath.

No I/O. Coordinates are level-0 px from the corner that the caller chose: QuPath counts them from the corner of a
slide's scanned bounds. The heat map has one pixel per ``2**k`` level-0 px, from the same corner, and carries its
physical pixel size, so that a viewer that knows scales lays it over the slide.
"""

import io
import json
import math
import uuid
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import tifffile
from jaxtyping import UInt8
from PIL import Image

from milcore.config import MAX_HEAT_MAP_MEGAPIXELS
from milcore.evaluation.attention.maps import colour_of

PIXELS_PER_PATCH = 16
TILE = 256
TILE_BUFFER_MB = 16
UM_PER_CM = 10_000.0
MEASUREMENTS = {
    "weight": "Attention weight",
    "percentile": "Attention percentile",
    "score": "Attention score",
    "instance_probability": "Instance probability",
    "contribution": "Contribution to the logit",
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


class HeatMap:
    """Attention in colour on white, painted by bands of rows.

    One pixel is ``factor`` level-0 px.

    The picture is ``ceil(size / factor)`` px; colour follows weight / largest weight. ``factor`` is ``heat_factor`` of
    the patches, doubled where the picture would have more than ``MAX_HEAT_MAP_MEGAPIXELS``.

    Args:
        size_level0: (width, height) of the slide or its bounds, level-0 px.
        table: of ``attention_table``, with coordinates.
    """

    def __init__(self, size_level0: tuple[int, int], table: pa.Table) -> None:
        self.factor = heat_factor(float(table["size"][0].as_py()))
        while math.prod(edge / self.factor for edge in size_level0) > MAX_HEAT_MAP_MEGAPIXELS * 1e6:
            self.factor *= 2
        self.width, self.height = (math.ceil(edge / self.factor) for edge in size_level0)
        weight = table["weight"].to_numpy()
        order = np.argsort(weight, kind="stable")
        self._paint = np.rint(colour_of(weight)).astype(np.uint8)[order]
        x, y, size = (table[name].to_numpy()[order] / self.factor for name in ("x", "y", "size"))
        edges = (np.maximum(np.rint(edge).astype(int), 0) for edge in (x, y, x + size, y + size))
        self._left, self._top, self._right, self._bottom = edges

    @property
    def levels(self) -> int:
        """Levels of its pyramid; the last is one tile or less."""
        return 1 + max(0, math.ceil(math.log2(max(self.width, self.height) / TILE)))

    def rows(self, start: int, stop: int) -> UInt8[np.ndarray, "row column 3"]:
        """Pixels of rows ``start`` to ``stop`` (exclusive), fewer at the end."""
        stop = min(stop, self.height)
        band = np.full((stop - start, self.width, 3), 255, np.uint8)
        for k in np.flatnonzero((self._top < stop) & (self._bottom > start)):
            band[max(self._top[k] - start, 0) : self._bottom[k] - start, self._left[k] : self._right[k]] = self._paint[
                k
            ]
        return band


def ome_tiff(slide_id: str, heat: HeatMap, mpp: float | None) -> bytes:
    """Tiled, losslessly compressed OME-TIFF with its halvings as SubIFDs.

    Equal input gives equal bytes. Memory holds one band of rows, not the picture: level 0 is painted as it is written,
    and the rows of the other levels, means of level 0, are kept compressed until their turn.

    Args:
        slide_id: the image's name.
        heat: of the slide.
        mpp: um/px of the slide's level 0, None where unknown.
    """
    reductions: list[list[bytes]] = [[] for _ in range(heat.levels)]
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, ome=True) as tiff:
        for level in range(heat.levels):
            shape = -(-heat.height // 2**level), -(-heat.width // 2**level), 3
            bands = _bands(heat, reductions) if level == 0 else _unpack(reductions[level], shape[1])
            per_cm = None if mpp is None else UM_PER_CM / (mpp * heat.factor * 2**level)
            tiff.write(
                _tiles(bands),
                shape=shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="deflate",
                predictor=True,
                subifds=heat.levels - 1 if level == 0 else None,
                subfiletype=int(level > 0),
                metadata=_ome_metadata(slide_id, heat.factor, mpp) if level == 0 else None,
                resolution=None if per_cm is None else (per_cm, per_cm),
                resolutionunit=None if per_cm is None else "CENTIMETER",
                software="milcore",
                buffersize=TILE_BUFFER_MB * 1_000_000,
            )
    return sink.getvalue()


def _bands(heat: HeatMap, reductions: list[list[bytes]]) -> Iterator[UInt8[np.ndarray, "row column 3"]]:
    """Bands of level 0; those of the other levels are added to ``reductions``, compressed."""
    rows = max(TILE, 2 ** (heat.levels - 1))  # whole px of every level
    for start in range(0, heat.height, rows):
        band = heat.rows(start, start + rows)
        for level in range(1, heat.levels):
            reductions[level].append(zlib.compress(np.asarray(Image.fromarray(band).reduce(2**level)).tobytes(), 1))
        yield band


def _unpack(bands: list[bytes], width: int) -> Iterator[UInt8[np.ndarray, "row column 3"]]:
    return (np.frombuffer(zlib.decompress(band), np.uint8).reshape(-1, width, 3) for band in bands)


def _tiles(bands: Iterable[UInt8[np.ndarray, "row column 3"]]) -> Iterator[UInt8[np.ndarray, "row column 3"]]:
    """Tiles in TIFF order, black beyond the picture."""
    pending: list[np.ndarray] = []
    for band in bands:
        pending.append(band)
        if sum(map(len, pending)) >= TILE:
            rows = np.concatenate(pending)
            whole = len(rows) // TILE * TILE
            yield from _tiles_of(rows[:whole])
            pending = [rows[whole:]]
    yield from _tiles_of(np.concatenate(pending))


def _tiles_of(rows: UInt8[np.ndarray, "row column 3"]) -> Iterator[UInt8[np.ndarray, "row column 3"]]:
    for top in range(0, len(rows), TILE):
        for left in range(0, rows.shape[1], TILE):
            inside = rows[top : top + TILE, left : left + TILE]
            tile = np.zeros((TILE, TILE, 3), np.uint8)
            tile[: inside.shape[0], : inside.shape[1]] = inside
            yield tile


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
