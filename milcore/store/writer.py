"""Writes one slide's group of the patch store, safe against being killed at any moment and against a second writer.

The group is marked as begun first and ``complete`` last, and each object is written whole; nothing is removed before
that, so two writers of one slide, whose bytes are equal, cannot spoil each other's work. What an earlier ingestion left
is removed at the end, as far as it lay there at the beginning.
"""

import hashlib
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from milcore.config import Codec
from milcore.errors import StoreError
from milcore.runtime import storage
from milcore.store.shards import ShardWriter, write_array

SCHEMA_VERSION = 1
ROW_TYPES = {"coords": np.int32, "instance_labels": np.int8, "instance_classes": np.int32}

RowName = Literal["coords", "instance_labels", "instance_classes"]


class SlideWriter:
    """Writes one slide's group patch by patch; ``attrs`` may be added to until the context ends.

    Args:
        uri: of the group.
        attrs: known beforehand.
        patch_size: p, in px; None for a slide without pixels.
        codec: how a patch is stored.
        quality: JPEG quality, 1 to 100.
    """

    def __init__(self, uri: str, attrs: dict[str, Any], patch_size: int | None, codec: Codec, quality: int) -> None:
        self.attrs = dict(attrs)
        self._uri = uri
        self._before = storage.files(uri)
        write_group(uri, {"begun": attrs, "complete": False})
        self._written = {storage.join(uri, "zarr.json")}
        self._shards: ShardWriter | None = None
        if patch_size is not None:
            self.attrs |= {"patch_size": patch_size, "codec": codec}
            self._shards = ShardWriter(storage.join(uri, "patches"), patch_size, codec, quality)
        self._coords: list[tuple[int, int]] = []
        self._tissue: list[float] = []
        self._rows: dict[str, npt.NDArray[Any]] = {}
        self._arrays: set[str] = set()
        self._quality = quality

    def append(self, patch: npt.NDArray[np.uint8], x: int, y: int, tissue: float) -> None:
        """Add a patch (p, p, 3), its corner in level-0 px and the share of its area that is tissue."""
        self.append_patch(patch)
        self._add_place(x, y, tissue)

    def append_chunk(self, data: bytes, x: int, y: int, tissue: float) -> None:
        """As ``append``, of a patch that is already encoded in the codec."""
        self._patches().append_chunk(data)
        self._add_place(x, y, tissue)

    def append_patch(self, patch: npt.NDArray[np.uint8]) -> None:
        """Add a patch (p, p, 3) alone; where its place is known, ``write_rows`` takes the places of all."""
        self._patches().append(patch)

    def write_rows(self, name: RowName, values: npt.NDArray[np.integer[Any]]) -> None:
        """Keep a value, or a place, of every instance; stored when the context ends."""
        self._rows[name] = values.astype(ROW_TYPES[name])

    def write_thumbnail(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Store the slide's thumbnail (h, w, 3)."""
        self._written |= write_array(storage.join(self._uri, "thumbnail"), pixels, self._quality)
        self._arrays.add("thumbnail")

    def write_mask(self, mask: npt.NDArray[np.bool_]) -> None:
        """Store where the thumbnail shows tissue (h, w), at a scale of its own."""
        self._written |= write_array(storage.join(self._uri, "tissue_mask"), mask.astype(np.uint8))
        self._arrays.add("tissue_mask")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._complete()

    def _patches(self) -> ShardWriter:
        if self._shards is None:
            raise StoreError(f"{self._uri} was begun without a patch size and takes no patches; give the writer one")
        return self._shards

    def _add_place(self, x: int, y: int, tissue: float) -> None:
        self._coords.append((x, y))
        self._tissue.append(tissue)

    def _complete(self) -> None:
        rows = dict(self._rows)
        if self._coords:
            rows |= {"coords": np.array(self._coords, np.int32), "tissue": np.array(self._tissue, np.float32)}
        final = self._finish_patches(rows.get("coords", np.empty((0, 2), np.int32)))
        for name, array in rows.items():
            self._written |= write_array(storage.join(self._uri, name), array)
        storage.remove_all(self._before - self._written)
        final |= {"status": "ok", "arrays": sorted(self._arrays | rows.keys()), "complete": True}
        write_group(self._uri, {**self.attrs, **final})

    def _finish_patches(self, coords: npt.NDArray[np.int32]) -> dict[str, Any]:
        """Write what is left of the patches; their count and the digest of pixels and places."""
        if self._shards is None:
            return {}
        chunks = self._shards.finish()
        self._written |= self._shards.written
        self._arrays.add("patches")
        digest = hashlib.sha256(chunks.encode() + coords.astype("<i4").tobytes()).hexdigest()
        return {"patches": self._shards.count, "patches_digest": digest}


def write_group(uri: str, attrs: dict[str, Any]) -> None:
    """Write the group's metadata, whole."""
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": attrs}
    storage.write_json(storage.join(uri, "zarr.json"), metadata)
