"""Annotated regions of slides, and instance labels from their overlap.

A file is GeoJSON or ASAP's XML. It may be compressed (gzip, or zip with one file in it). They serve localisation
metrics only: nothing is trained on them.
"""

import gzip
import hashlib
import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from jaxtyping import Int
from shapely.geometry.base import BaseGeometry

from milcore.cohort.asap_xml import read_asap_xml
from milcore.cohort.geojson import read_geojson
from milcore.cohort.outline import Outline
from milcore.config import MAX_ANNOTATION_MB, AnnotationConfig, AnnotationOrigin
from milcore.errors import InputError
from milcore.runtime import storage
from milcore.runtime.allow_list import check_uri

POSITIVE_OVERLAP = 0.25
# QuPath's class for what is to be left out of an area
IGNORE = "ignore"
FEATURES_NAMED = 5
CLASSES_NAMED = 20
_GZIP, _ZIP = b"\x1f\x8b", b"PK"
_NO_ARCHIVE = (
    OSError, EOFError, ValueError, RuntimeError, NotImplementedError, KeyError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip

AnnotationForm = Literal["geojson", "asap"]
# QuPath draws and exports from the corner of the bounds, ASAP from that of the slide
ORIGINS: dict[AnnotationForm, AnnotationOrigin] = {"geojson": "bounds", "asap": "slide"}


@dataclass(frozen=True, slots=True)
class Annotation:
    """The outlines of one file, in px from the file's own origin.

    Args:
        form: of the file.
        outlines: in the order of the file.
        sha256: of the file.
        is_latin: it is no UTF-8 and was read as Latin-1.
    """

    form: AnnotationForm
    outlines: tuple[Outline, ...]
    sha256: str
    is_latin: bool

    @property
    def class_names(self) -> set[str | None]:
        """Classes of the outlines that have an area and are not ignored."""
        return {each.class_name for each in self.outlines if not each.area.is_empty and not is_ignored(each.class_name)}

    def area(self, classes: Sequence[str]) -> BaseGeometry:
        """Union of the areas of these classes, less those to be ignored.

        Where no class is named, all count.
        """
        wanted = [each.area for each in self.outlines if not is_ignored(each.class_name)
                  and (not classes or each.class_name in classes)]  # fmt: skip
        ignored = [each.area for each in self.outlines if is_ignored(each.class_name)]
        return shapely.difference(shapely.union_all(wanted), shapely.union_all(ignored))

    def region(self, config: AnnotationConfig, bounds_corner: tuple[int, int]) -> BaseGeometry:
        """The annotated region of the slide, level-0 px from the slide's corner.

        Args:
            config: classes that count, and the origin of the coordinates.
            bounds_corner: (x, y) of the slide's bounds, level-0 px.
        """
        origin = config.annotation_origin or ORIGINS[self.form]
        corner = np.array(bounds_corner if origin == "bounds" else (0, 0))
        return shapely.transform(self.area(config.annotation_class), lambda positions: positions + corner)

    def notes(self) -> Iterator[str]:
        """Lines on what does not count as it was drawn."""
        if self.is_latin:
            yield "it is no UTF-8 and was read as Latin-1"
        for note in dict.fromkeys(each.note for each in self.outlines if each.note):
            numbers = [str(each.number) for each in self.outlines if each.note == note]
            named = ", ".join(numbers[:FEATURES_NAMED]) + (" …" if len(numbers) > FEATURES_NAMED else "")
            yield f"{len(numbers)} of {len(self.outlines)} features {note}: feature {named}"
        if all(each.area.is_empty for each in self.outlines):
            yield "it holds no area, so that the slide counts as one without annotation"


def is_ignored(class_name: str | None) -> bool:
    """True for a class that is subtracted: QuPath's ``Ignore*``."""
    return class_name is not None and class_name.casefold().startswith(IGNORE)


def load_annotation(uri: str, slide_id: str) -> Annotation:
    """Read the annotation of a slide.

    Raises:
        InputError: there is no such object, or it holds no outlines.
    """
    check_uri(uri, f"annotation of slide {slide_id}")
    try:
        size_mb = storage.stat(uri).size / 1e6
        if size_mb > MAX_ANNOTATION_MB:
            raise _too_large(f"annotation of slide {slide_id}, {uri}", f"{size_mb:,.0f} MB")
        data = storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(
            f"annotation of slide {slide_id}: expected a file, got nothing at {uri}; correct the manifest's annotation"
        ) from None
    return read_annotation(data, f"annotation of slide {slide_id}, {uri}")


def _too_large(place: str, size: str) -> InputError:
    return InputError(f"{place}: expected outlines, got {size}; allowed: {MAX_ANNOTATION_MB} MB; simplify the outlines")


def read_annotation(data: bytes, place: str) -> Annotation:
    """Parse a file of GeoJSON or ASAP's XML.

    Args:
        data: of the file, compressed or not.
        place: names the file in errors.

    Raises:
        InputError: it is neither, or a feature of it is no outline.
    """
    text, is_latin = _decode(_unpack(data, place))
    form: AnnotationForm = "asap" if text.lstrip().startswith("<") else "geojson"
    try:
        outlines = read_asap_xml(text, place) if form == "asap" else read_geojson(text, place)
    except (ValueError, RecursionError) as error:
        # not the error's text, which may quote the file
        raise _another_text(place, f"another text ({type(error).__name__})") from None
    if not text.strip():
        raise _another_text(place, "an empty file")
    return Annotation(form, tuple(outlines), hashlib.sha256(data).hexdigest(), is_latin)


def _another_text(place: str, got: str) -> InputError:
    return InputError(f"{place}: expected outlines, got {got}; allowed: GeoJSON, as QuPath exports it, or ASAP's XML")


def _unpack(data: bytes, place: str) -> bytes:
    """The bytes of a file, unpacked where it is gzip or zip."""
    limit = MAX_ANNOTATION_MB * 1_000_000
    try:
        if data.startswith(_GZIP):
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(limit + 1)
        elif data.startswith(_ZIP):
            with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(_only_member(archive, place)) as member:
                data = member.read(limit + 1)
    except _NO_ARCHIVE as error:
        raise InputError(
            f"{place}: expected outlines, got a damaged archive ({type(error).__name__}); allowed: gzip, or zip "
            "without a password"
        ) from None
    if len(data) > limit:
        raise _too_large(place, f"an archive of more than {MAX_ANNOTATION_MB} MB")
    return data


def _only_member(archive: zipfile.ZipFile, place: str) -> zipfile.ZipInfo:
    # macOS puts a description beside each file
    members = [each for each in archive.infolist() if not each.is_dir() and not each.filename.startswith("__MACOSX/")]
    if len(members) != 1:
        raise InputError(f"{place}: expected a zip of one file, got {len(members)}; allowed: one slide's annotation")
    return members[0]


def _decode(data: bytes) -> tuple[str, bool]:
    """Text of a file, and True where it was read as Latin-1."""
    try:
        return data.decode(json.detect_encoding(data)), False
    except UnicodeDecodeError:
        return data.decode("latin-1"), True


def unmatched_classes(class_names: Iterable[set[str | None]], config: AnnotationConfig) -> list[str]:
    """The classes asked for that none of the annotations has.

    Args:
        class_names: of each annotation.
        config: names the classes.

    Raises:
        InputError: none of them has any.
    """
    counts = Counter(name for names in class_names for name in names if name is not None)
    unmatched = [name for name in config.annotation_class if name not in counts]
    if unmatched and len(unmatched) == len(config.annotation_class):
        raise InputError(
            f"annotation_class: expected a class of the annotations, got {', '.join(unmatched)}; allowed: "
            f"{', '.join(sorted(counts)[:CLASSES_NAMED]) or 'none, since no outline has a class'}"
        )
    return unmatched


def instance_labels(
    coords: Int[np.ndarray, "instance 2"], patch_size_level0: float, region: BaseGeometry
) -> Int[np.ndarray, " instance"]:
    """Label of each patch from its overlap with a region.

    1 where at least 25 % of the patch lies in the region, 0 where nothing does, -1 (left out) between.

    Args:
        coords: upper left corners (x, y), level-0 px.
        patch_size_level0: patch edge, level-0 px.
        region: annotated area, level-0 px.
    """
    x, y = coords[:, 0].astype(np.float64), coords[:, 1].astype(np.float64)
    boxes = shapely.box(x, y, x + patch_size_level0, y + patch_size_level0)
    share = np.zeros(len(coords))
    shapely.prepare(region)
    near = shapely.intersects(region, boxes)
    share[near] = shapely.area(shapely.intersection(boxes[near], region)) / patch_size_level0**2
    return np.where(share >= POSITIVE_OVERLAP, 1, np.where(share > 0, -1, 0)).astype(np.int64)
