"""Row of the catalogue: what the ``zarr.json`` of a slide's group and arrays say.

The objects in the slide's folder stay the truth. A row holds their bytes, or their sha256 where they are long, so that
a slide is opened without a request and a row that is out of date is noticed at the first read.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from milcore.errors import DamageError, StoreError
from milcore.runtime import storage
from milcore.store.group_record import parse_record, read_groups, record_of_metadata
from milcore.store.metadata import metadata_uri, parse_array_metadata
from milcore.store.paths import group_uri, source_uri
from milcore.store.slide_record import SlideRecord

FEATURES = "features/"
# of a slide whose record names no arrays, as earlier versions wrote it
INGESTED_ARRAYS = ("patches", "coords", "tissue", "thumbnail")
# the metadata of patches holds a checksum for each, and is read where patches are
LONGEST_METADATA_KB = 8
# whose metadata, that of patches too, is in memory
SLIDES_AT_A_TIME = 256


class ArrayRow(NamedTuple):
    """``zarr.json`` of an array: sha256 of its bytes, and the bytes.

    ``metadata`` is None where they are long.
    """

    sha256: str
    metadata: bytes | None

    @classmethod
    def of(cls, metadata: bytes) -> "ArrayRow":
        """Row of an array from the bytes of its ``zarr.json``."""
        is_short = len(metadata) <= LONGEST_METADATA_KB * 1000
        return cls(hashlib.sha256(metadata).hexdigest(), metadata if is_short else None)

    def is_of(self, metadata: bytes) -> bool:
        """True where the row was made of these bytes."""
        return self == ArrayRow.of(metadata)


class SlideRow(NamedTuple):
    """Slide in the catalogue.

    Args:
        slide_id: of the slide.
        group: bytes of the group's ``zarr.json``, complete.
        arrays: its arrays by name, complete features (``features/<name>``) among them.
        source: bytes of ``sources/<slide_id>.json``; None where there is none.
    """

    slide_id: str
    group: bytes
    arrays: Mapping[str, ArrayRow]
    source: bytes | None = None

    def record(self, store_uri: str) -> SlideRecord:
        """Record of the slide.

        Its digest was checked with the catalogue's; others may have written both.

        Raises:
            DamageError: it is no record of a complete slide.
        """
        uri = metadata_uri(group_uri(store_uri, self.slide_id))
        metadata = storage.parse_json(self.group, uri)
        is_group = isinstance(metadata, dict) and isinstance(metadata.get("attributes"), dict)
        record = record_of_metadata(metadata, self.slide_id, uri) if is_group else None
        if record is None:
            raise DamageError(
                f"slide {self.slide_id!r}: catalogue of {store_uri}: expected the record of a complete slide, got "
                "another; run milcore info --rebuild on the store"
            )
        return record

    @classmethod
    def of(cls, slide_id: str, group: bytes, metadata: Mapping[str, bytes], source: bytes | None = None) -> "SlideRow":
        """Row of a slide from the bytes of every ``zarr.json`` in it.

        Incomplete features are left out.
        """
        arrays = {
            name: ArrayRow.of(data)
            for name, data in metadata.items()
            if not name.startswith(FEATURES) or _is_complete(data, name)
        }
        return cls(slide_id, group, arrays, source)

    @property
    def feature_names(self) -> list[str]:
        """Names of its complete features."""
        return sorted(name.removeprefix(FEATURES) for name in self.arrays if name.startswith(FEATURES))

    def digest(self, name: str) -> str | None:
        """Sha256 of the ``zarr.json`` of an array, with its checksums; None without one."""
        return self.arrays[name].sha256 if name in self.arrays else None

    def has_array(self, name: str, metadata: bytes) -> bool:
        """True where the row has an array of this ``zarr.json``."""
        return name in self.arrays and self.arrays[name].is_of(metadata)

    def with_array(self, name: str, metadata: bytes) -> "SlideRow":
        """The same row with an array as it is now."""
        return self._replace(arrays={**self.arrays, name: ArrayRow.of(metadata)})


def read_rows(store_uri: str, slide_ids: Sequence[str]) -> dict[str, SlideRow]:
    """Make the rows of slides anew from their own objects, by concurrent requests.

    Slides that are absent, incomplete or damaged have none.
    """
    rows: dict[str, SlideRow] = {}
    for start in range(0, len(slide_ids), SLIDES_AT_A_TIME):
        rows |= _read_rows(store_uri, slide_ids[start : start + SLIDES_AT_A_TIME])
    return rows


def _read_rows(store_uri: str, slide_ids: Sequence[str]) -> dict[str, SlideRow]:
    groups = _read_groups(store_uri, slide_ids)
    arrays = {slide_id: _array_names(record) for slide_id, (_, record) in groups.items()}
    usable = [slide_id for slide_id, (_, record) in groups.items() if record.status == "ok"]
    with ThreadPoolExecutor(storage.CONCURRENT_REQUESTS) as pool:
        features = pool.map(lambda slide_id: _feature_names(store_uri, slide_id), usable)
        for slide_id, of_slide in zip(usable, features, strict=True):
            arrays[slide_id] += of_slide
    metadata = _read_metadata(store_uri, arrays)
    sources = storage.read_all([source_uri(store_uri, slide_id) for slide_id in groups])
    return {
        slide_id: SlideRow.of(slide_id, data, metadata[slide_id], sources.get(source_uri(store_uri, slide_id)))
        for slide_id, (data, _) in groups.items()
    }


def _read_groups(store_uri: str, slide_ids: Iterable[str]) -> dict[str, tuple[bytes, SlideRecord]]:
    """``zarr.json`` and record of every slide that is complete."""
    groups: dict[str, tuple[bytes, SlideRecord]] = {}
    for slide_id, data in read_groups(store_uri, slide_ids).items():
        try:
            record = parse_record(data, slide_id, store_uri)
        except StoreError:
            continue  # whoever reads the slide tells
        if record is not None:
            groups[slide_id] = data, record
    return groups


def _array_names(record: SlideRecord) -> list[str]:
    if record.status != "ok":
        return []
    return list(INGESTED_ARRAYS if record.arrays is None else record.arrays)


def _feature_names(store_uri: str, slide_id: str) -> list[str]:
    """Features of a slide that have a folder, as arrays."""
    names = storage.names(storage.join(group_uri(store_uri, slide_id), FEATURES.rstrip("/")))
    return [f"{FEATURES}{name}" for name in names if name != "zarr.json"]


def _read_metadata(store_uri: str, names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, bytes]]:
    """``zarr.json`` of the arrays of every slide, as far as they are there."""
    uris = {
        (slide_id, name): metadata_uri(storage.join(group_uri(store_uri, slide_id), name))
        for slide_id, of_slide in names.items()
        for name in of_slide
    }
    data = storage.read_all(list(uris.values()))
    metadata: dict[str, dict[str, bytes]] = {slide_id: {} for slide_id in names}
    for (slide_id, name), uri in uris.items():
        if uri in data:
            metadata[slide_id][name] = data[uri]
    return metadata


def _is_complete(data: bytes, name: str) -> bool:
    """True for complete features; False where their metadata is damaged."""
    try:
        return bool(parse_array_metadata(data, name)["attributes"].get("complete"))
    except DamageError:
        return False
