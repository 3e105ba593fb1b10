"""What a reader hands over: a cohort, and on request the instances of one of its slides.

Reading raises ``SlideError`` for the slide alone; what is wrong with the whole source is an ``InputError``.
Axis words: n (instance), d (feature), p (patch edge in px).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from milcore.cohort.manifest import Manifest, Slide
from milcore.store.writer import RowName

FeatureType = Literal["float16", "float32"]
Array = npt.NDArray[Any]

LARGEST_CHANGE = 2.0**-8


@dataclass(frozen=True, slots=True)
class Instances:
    """The instances of one slide: features (n, d), patches (n, p, p, 3 or 1) u1, or both.

    Args:
        rows: values of every instance by the store's names (``coords`` (n, 2), ``instance_labels`` (n,) …).
        attrs: what the store keeps of the slide (``patch_size_level0``, ``size_level0`` …).
        sha256: of what they were read from.
    """

    features: Array | None
    patches: Array | None
    rows: dict[RowName, Array]
    attrs: dict[str, Any]
    sha256: str

    def __len__(self) -> int:
        return len(self.features if self.features is not None else self.patches)  # type: ignore[arg-type]


class Source(NamedTuple):
    """A cohort made elsewhere.

    Args:
        manifest: its slides and labels.
        see: uri, size and version of what a slide is read from, without reading it where that can be.
        read: the instances of a slide.
        feature_type: how features are stored.
        unlabelled: files that no label names; they are left out.
    """

    manifest: Manifest
    see: Callable[[Slide], dict[str, Any]]
    read: Callable[[Slide], Instances]
    feature_type: FeatureType
    unlabelled: tuple[str, ...]


def table_source(uri: str, manifest: Manifest, read: Callable[[str], Instances], feature_type: FeatureType) -> Source:
    """The source of one file that holds all slides: a slide's version is the digest of its own rows.

    Args:
        uri: of the file.
        manifest: the slides in it.
        read: the instances of a slide by its id; everything is in memory already.
        feature_type: how features are stored.
    """

    def see(slide: Slide) -> dict[str, Any]:
        instances = read(slide.slide_id)
        return {"uri": uri, "size": len(instances), "version": instances.sha256}

    return Source(manifest, see, lambda slide: read(slide.slide_id), feature_type, ())


def members(owner: npt.NDArray[np.integer[Any]], owners: int) -> list[npt.NDArray[np.intp]]:
    """The rows of each owner, in their order.

    Args:
        owner: number of the owner of each row, 0 to ``owners - 1``.
        owners: how many there are; some may own nothing.
    """
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.searchsorted(owner[order], np.arange(1, owners)))


def digest(*arrays: Array | None) -> str:
    """Sha256 over types, shapes and values."""
    sha256 = hashlib.sha256()
    for array in arrays:
        if array is not None:
            sha256.update(f"{array.dtype.str}{array.shape}".encode())
            sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def feature_type(features: npt.NDArray[np.float32]) -> FeatureType:
    """float16 where it changes no value by more than 1/256 of its column's standard deviation, else float32."""
    finite = features[np.isfinite(features).all(axis=1)]
    if not len(finite):
        return "float16"
    with np.errstate(over="ignore"):
        change = np.abs(finite.astype(np.float16).astype(np.float32) - finite).max(axis=0)
    allowed = LARGEST_CHANGE * finite.std(axis=0, dtype=np.float64)
    return "float16" if bool((change <= allowed).all()) else "float32"
