"""Typed record of the attributes of a slide's Zarr group, and its JSON.

The JSON keeps the keys of the store: a field that is None has no key, but for those of ``SlideMpp`` and ``ScanRecord``,
which are null there. The fields of ``ScanRecord`` lie beside those of ``SlideRecord`` in the JSON.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar, get_args

from milcore.cohort.manifest import id_problem
from milcore.config import (
    MAX_INSTANCES_PER_SLIDE,
    MAX_PATCH_EDGE_PX,
    MAX_SLIDE_EDGE_PX,
    MAX_SLIDE_GIGAPIXELS,
    Codec,
)
from milcore.errors import StoreError
from milcore.runtime.digest import digest

# 2: chunks, arrays and groups have checksums
SCHEMA_VERSION = 2

SlideState = Literal["ok", "quarantined"]
Part = TypeVar("Part")

# JSON keys that are not the field's name
_KEYS = {
    "array": "as",
    "import_origin": "imported",
    "origin": "from",
    "patch_size_level0_origin": "patch_size_level0_from",
}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """File that a slide was read from, and the identity of its content.

    Args:
        uri: of the file.
        size: in bytes; None in an import.
        sha256: of the content; None for a remote file that is never read whole.
        etag: the storage's own identifier of that remote file's content.
    """

    uri: str
    size: int | None = None
    sha256: str | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class ImportOrigin:
    """Format of an imported slide, and the array that it was imported as.

    Args:
        format: of the source, as ``ImportConfig`` names it.
        array: ``patches`` or ``features/<name>``.
    """

    format: str
    array: str


@dataclass(frozen=True, slots=True)
class SlideMpp:
    """Scale of a slide in um/px.

    Args:
        level0: of level 0.
        target: asked for by ingestion; None in an import.
        patch: of the patches; None where unknown.
        origin: of ``level0``: manifest, slide, magnification or default_mpp; in an import labels or slide.
    """

    level0: float
    target: float | None
    patch: float | None
    origin: str


@dataclass(frozen=True, slots=True)
class TileCounts:
    """Tiles of a slide's grid: all, with tissue, unreadable, and written as patches."""

    grid: int
    tissue: int
    unreadable: int
    patches: int


@dataclass(frozen=True, slots=True)
class ScanRecord:
    """Attributes that ingestion records and an import does not.

    Args:
        reader: name of the reader that opened the slide.
        level0_affine: (x, y, 1) in level-0 px to um, two rows.
        icc_sha256: of the colour profile; None without one.
        tissue: method and thresholds of the tissue mask.
        codec_instead: reason why the codec is another than asked for; None where it is not.
        stain_normalisation: method and stains of the slide; None where patches are as scanned.
        unread_images: sizes (width, height) of further images in the file; None in stores of earlier versions.
    """

    reader: str
    level0_affine: list[list[float]]
    icc_sha256: str | None
    tissue: dict[str, Any]
    codec_instead: str | None = None
    stain_normalisation: dict[str, Any] | None = None
    unread_images: list[list[int]] | None = None


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """Attributes of a slide's group; None where a slide has none of a kind.

    Args:
        slide_id: of the slide.
        schema_version: of the store's layout.
        status: outcome; None while the slide is being written.
        reason: of a quarantine, for a person.
        retry: the next run tries a quarantined slide again.
        parameters: settings of ingestion or import.
        source: file that the slide was read from.
        import_origin: of an imported slide.
        size_level0: (width, height) of the slide in level-0 px.
        bounds: (left, top, width, height) of the part that was scanned, in level-0 px; None in stores of earlier
            versions, and in an import without its slide.
        mpp: its scale.
        patch_size_level0: patch edge in level-0 px.
        patch_size_level0_origin: of that in an import: option, source or grid step.
        patch_size: patch edge in px.
        codec: of its patches.
        counts: of its tiles.
        patches: number of instances.
        patches_digest: sha256 of pixels and coords.
        arrays: names of the group's arrays without features; None in stores of earlier versions.
        scan: reader, tissue and stains; None in an import.
        features_width: d of imported features.
        no_picture: reason why the file of an imported slide gave no thumbnail.
        instance_class_names: names of imported instance classes, in the order of their numbers.
    """

    slide_id: str
    schema_version: int = SCHEMA_VERSION
    status: SlideState | None = None
    reason: str | None = None
    retry: bool | None = None
    parameters: dict[str, Any] | None = None
    source: SourceFile | None = None
    import_origin: ImportOrigin | None = None
    size_level0: tuple[int, int] | None = None
    bounds: tuple[int, int, int, int] | None = None
    mpp: SlideMpp | None = None
    patch_size_level0: float | None = None
    patch_size_level0_origin: str | None = None
    patch_size: int | None = None
    codec: Codec | None = None
    counts: TileCounts | None = None
    patches: int | None = None
    patches_digest: str | None = None
    arrays: tuple[str, ...] | None = None
    scan: ScanRecord | None = None
    features_width: int | None = None
    no_picture: str | None = None
    instance_class_names: tuple[str, ...] | None = None

    @property
    def instances(self) -> int:
        """Number of instances; 0 in quarantine."""
        return self.patches or 0

    @property
    def digest(self) -> str:
        """Sha256 of the record."""
        return digest(self.to_attrs())

    @property
    def patch_mpp(self) -> float | None:
        """um/px of the patches; None where unknown."""
        return None if self.mpp is None else self.mpp.patch

    @property
    def lacks_bounds(self) -> bool:
        """True where the slide may have bounds that an earlier version did not record."""
        return self.bounds is None and self.scan is not None and self.scan.reader.startswith("openslide:")

    def with_files(self, change: Callable[[str], str]) -> Self:
        """The same record with the URIs of its files changed.

        These are its source, and the slide of an import.
        """
        source = self.source and replace(self.source, uri=change(self.source.uri))
        image = (self.parameters or {}).get("slide_uri")
        parameters = {**(self.parameters or {}), "slide_uri": change(image)} if image else self.parameters
        return replace(self, source=source, parameters=parameters)

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> Self:
        """Parse the attributes of a group.

        Args:
            attrs: as JSON; unknown keys are left out, and keys of an earlier version may be absent.

        Raises:
            StoreError: a value is of another kind or out of range: others may have written the store.
        """
        problem = id_problem(attrs.get("slide_id"))
        if problem is not None:
            raise StoreError(f"attributes of a slide: {problem}")
        try:
            record = cls._parse_attrs(attrs)
            problem = record_problem(record)
        except (TypeError, ValueError, AttributeError) as error:
            problem = f"expected the attributes that milcore writes, got others ({error})"
        if problem is not None:
            raise StoreError(f"slide {attrs['slide_id']!r}: {problem}; make it anew")
        return record

    @classmethod
    def _parse_attrs(cls, attrs: Mapping[str, Any]) -> Self:
        values: dict[str, Any] = {name: attrs.get(key) for name, key in _keys_of(cls)}
        values["schema_version"] = attrs.get("schema_version", 1)
        for name, part in _PARTS.items():
            values[name] = None if values[name] is None else _parse(part, values[name])
        for name in ("size_level0", "bounds", "arrays", "instance_class_names"):
            values[name] = None if values[name] is None else tuple(values[name])
        return cls(**values | {"scan": _parse(ScanRecord, attrs) if "reader" in attrs else None})

    def to_attrs(self) -> dict[str, Any]:
        """JSON attributes of the group, without ``complete``."""
        attrs = _without_none(_to_json(self))
        attrs |= {} if self.source is None else {"source": _without_none(_to_json(self.source))}
        for name in ("import_origin", "mpp", "counts"):
            part = getattr(self, name)
            attrs |= {} if part is None else {_key(name): _to_json(part)}
        attrs.pop("scan", None)
        return attrs if self.scan is None else attrs | _to_json(self.scan)

    def to_complete_attrs(self) -> dict[str, Any]:
        """JSON attributes of a group to which nothing is added any more."""
        return {**self.to_attrs(), "complete": True}


_PARTS: dict[str, type[Any]] = {
    "source": SourceFile,
    "import_origin": ImportOrigin,
    "mpp": SlideMpp,
    "counts": TileCounts,
}


def record_problem(record: SlideRecord) -> str | None:
    """Reason why a record is out of range; None where it is not.

    Its values become sizes in memory, or choose how data is read.
    """
    width, height = record.size_level0 or (1, 1)
    left, top, *bounds_size = record.bounds or (0, 0, 1, 1)
    fits = {
        "schema_version": isinstance(record.schema_version, int),
        "status": record.status in (None, *get_args(SlideState)),
        "codec": record.codec in (None, *get_args(Codec)),
        "reason": record.reason is None or isinstance(record.reason, str),
        "patches": _is_count(record.patches or 0, 0, MAX_INSTANCES_PER_SLIDE),
        "patch_size": _is_count(record.patch_size or 1, 1, MAX_PATCH_EDGE_PX),
        "size_level0": all(_is_count(edge, 1, MAX_SLIDE_EDGE_PX) for edge in (width, height))
        and width * height <= MAX_SLIDE_GIGAPIXELS * 1e9,
        "bounds": len(bounds_size) == 2
        and all(_is_count(edge, 0, MAX_SLIDE_EDGE_PX) for edge in (left, top))
        and all(_is_count(edge, 1, MAX_SLIDE_EDGE_PX) for edge in bounds_size),
        "patch_size_level0": _is_length(record.patch_size_level0),
        "mpp": record.mpp is None or _is_length(record.mpp.level0),
    }
    wrong = next((name for name, is_right in fits.items() if not is_right), None)
    return None if wrong is None else (
        f"{wrong}: expected a value that milcore writes, got {getattr(record, wrong)!r}; allowed: at most "
        f"{MAX_INSTANCES_PER_SLIDE:,} patches of {MAX_PATCH_EDGE_PX:,} px, a slide of {MAX_SLIDE_EDGE_PX:,} px an edge "
        f"and {MAX_SLIDE_GIGAPIXELS} gigapixels"
    )  # fmt: skip


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and least <= value <= most


def _is_length(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and 0 < value < math.inf)


_KEYS_OF: dict[type[Any], tuple[tuple[str, str], ...]] = {}


def _keys_of(kind: type[Any]) -> tuple[tuple[str, str], ...]:
    """Fields of a part of the record, each with its JSON key.

    They are looked up once, since a store has many records.
    """
    if kind not in _KEYS_OF:
        _KEYS_OF[kind] = tuple((field.name, _key(field.name)) for field in fields(kind))
    return _KEYS_OF[kind]


def _key(name: str) -> str:
    return _KEYS.get(name, name)


def _parse(kind: type[Part], attrs: Mapping[str, Any]) -> Part:
    return kind(**{name: attrs.get(key) for name, key in _keys_of(kind)})


def _to_json(part: Any) -> dict[str, Any]:
    return {key: getattr(part, name) for name, key in _keys_of(type(part))}


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
