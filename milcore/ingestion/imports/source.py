"""Source of an import: its cohort, and the instances of each slide.

Reading raises ``SlideError`` for one slide; an error of the whole source is an ``InputError``.
Axis words: n (instance), d (feature), p (patch edge in px).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from milcore.cohort.manifest import Manifest, Slide
from milcore.ingestion.imports.coords import PatchGrid
from milcore.store.feature_type import FeatureType
from milcore.store.writer import RowName

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Instances:
    """Instances of one slide: features, patches, or both.

    Args:
        features: shape (n, d).
        patches: shape (n, p, p, 3 or 1), u1.
        rows: values of every instance by the store's names (``coords`` (n, 2), ``instance_labels`` (n,) …).
        sha256: of the file or rows that they were read from.
        grid: of the coords; None without coords.
        patch_size: patch edge in px that the encoder got; None where unknown.
        class_names: names of ``instance_classes``, in the order of their numbers; None without them.
    """

    features: Array | None
    patches: Array | None
    rows: dict[RowName, Array]
    sha256: str
    grid: PatchGrid | None = None
    patch_size: int | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.features if self.features is not None else self.patches)  # type: ignore[arg-type]


class Source(NamedTuple):
    """Cohort made elsewhere, and its reader.

    Args:
        manifest: its slides and labels.
        file: URI of a slide's own file of instances; None where there is none.
        version: of a slide's file (uri, size and version), without reading the file where possible.
        read: instances of a slide.
        feature_type: in which features are stored; None where each slide's own values decide.
        unlabelled: files without a label; they are left out.
    """

    manifest: Manifest
    file: Callable[[Slide], str | None]
    version: Callable[[Slide], dict[str, Any]]
    read: Callable[[Slide], Instances]
    feature_type: FeatureType | None
    unlabelled: tuple[str, ...]


def table_source(
    uri: str, manifest: Manifest, read: Callable[[str], Instances], feature_type: FeatureType | None
) -> Source:
    """Source of one file with all slides.

    The version of a slide is the digest of its rows.

    Args:
        uri: of the file.
        manifest: slides in it.
        read: instances of a slide by its id; all are in memory already.
        feature_type: in which features are stored; None where there are none.
    """

    def version(slide: Slide) -> dict[str, Any]:
        instances = read(slide.slide_id)
        return {"uri": uri, "size": len(instances), "version": instances.sha256}

    return Source(manifest, lambda _: None, version, lambda slide: read(slide.slide_id), feature_type, ())


def rows_by_slide(slide_numbers: npt.NDArray[np.integer[Any]], slides: int) -> list[npt.NDArray[np.intp]]:
    """Indices of the rows of each slide, ascending.

    Args:
        slide_numbers: of each row, 0 to ``slides - 1``.
        slides: number of slides; some may have no row.
    """
    order = np.argsort(slide_numbers, kind="stable")
    return np.split(order, np.searchsorted(slide_numbers[order], np.arange(1, slides)))


def array_digest(*arrays: Array | None) -> str:
    """Sha256 over types, shapes and values of arrays."""
    sha256 = hashlib.sha256()
    for array in arrays:
        if array is not None:
            sha256.update(f"{array.dtype.str}{array.shape}".encode())
            sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()
