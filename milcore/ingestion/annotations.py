"""Check of a cohort's annotations: that each can be read, and lies on tissue."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from milcore.cohort.annotations import load_annotation, unmatched_classes
from milcore.cohort.manifest import Manifest, Slide
from milcore.config import AnnotationConfig
from milcore.errors import InputError
from milcore.runtime import storage
from milcore.runtime.progress import log_line
from milcore.store.annotation_record import AnnotationRecord
from milcore.store.catalogue import Catalogue
from milcore.store.store import PatchStore

# an annotation with a smaller share on tissue lies mostly outside
MOSTLY = 0.5
GRID_EDGE = 512
CLASSES_NAMED = 10

T = TypeVar("T")


class _CheckedAnnotation(NamedTuple):
    """Annotation of a slide, without its outlines."""

    slide_id: str
    sha256: str
    class_names: set[str | None]
    notes: tuple[str, ...]


def check_annotations(manifest: Manifest, config: AnnotationConfig) -> AnnotationRecord:
    """Read every annotation of a cohort, and tell what does not count.

    Raises:
        InputError: annotations cannot be read, each with file and feature, or none has a class that was asked for.
    """
    results = list(_map(_check, _annotated(manifest)))
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        raise InputError(f"{len(problems)} annotation(s) cannot be read:\n  " + "\n  ".join(problems))
    annotations = [result for result in results if not isinstance(result, str)]
    for each in annotations:
        if each.notes:
            log_line(f"annotation of slide {each.slide_id}: {'; '.join(each.notes)}")
    if annotations:
        _log_classes([each.class_names for each in annotations], config)
    return AnnotationRecord(config, {each.slide_id: each.sha256 for each in annotations})


def _annotated(manifest: Manifest) -> list[Slide]:
    return [slide for slide in manifest.slides if slide.annotation is not None]


def _map(function: Callable[[Slide], T], slides: Iterable[Slide]) -> Iterator[T]:
    with ThreadPoolExecutor(storage.CONCURRENT_REQUESTS) as pool:
        yield from pool.map(function, slides)


def _check(slide: Slide) -> _CheckedAnnotation | str:
    """The annotation of a slide, or the reason why it cannot be read."""
    try:
        annotation = load_annotation(str(slide.annotation), slide.slide_id)
    except InputError as error:
        return error.line
    return _CheckedAnnotation(slide.slide_id, annotation.sha256, annotation.class_names, tuple(annotation.notes()))


def _log_classes(class_names: list[set[str | None]], config: AnnotationConfig) -> None:
    """Tell of classes that no annotation has, and of several that all count."""
    unmatched = unmatched_classes(class_names, config)
    if unmatched:
        log_line(f"annotation_class: no annotation has the class(es) {', '.join(unmatched)}")
    counts = Counter(name or "(none)" for names in class_names for name in names)
    if len(counts) > 1 and not config.annotation_class:
        named = ", ".join(f"{name} ({count})" for name, count in counts.most_common(CLASSES_NAMED))
        log_line(f"annotations hold several classes, which all count as positive: {named}; --annotation-class selects")


def log_outside_tissue(store: PatchStore) -> None:
    """Tell which annotations lie mostly outside the tissue.

    Those of another slide or origin do.
    """
    record = store.annotation_record()
    slides = [slide for slide in _annotated(store.manifest()) if slide.slide_id in record.sha256]

    catalogue = store.catalogue()

    def share(slide: Slide) -> float:
        return _tissue_share_of(catalogue, slide, record.config)

    for slide, of_slide in zip(slides, _map(share, slides), strict=True):
        if of_slide < MOSTLY:
            log_line(
                f"annotation of slide {slide.slide_id}: only {of_slide:.0%} of its area lies on tissue: is it of "
                f"another slide, or drawn from another corner (--annotation-origin)? {slide.annotation}"
            )


def _tissue_share_of(catalogue: Catalogue, slide: Slide, config: AnnotationConfig) -> float:
    """Share of a slide's annotated area that is tissue; NaN where either is unknown."""
    record = catalogue.records[slide.slide_id]
    group = catalogue.slide(slide.slide_id) if record is not None and record.status == "ok" else None
    mask = None if group is None else group.tissue_mask
    if group is None or mask is None:
        return math.nan
    try:
        annotation = load_annotation(str(slide.annotation), slide.slide_id)
    except InputError:  # it was replaced meanwhile, which evaluation refuses
        return math.nan
    return tissue_share(annotation.region(config, group.bounds_corner), mask, group.size_level0)


def tissue_share(region: BaseGeometry, mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> float:
    """Share of a region's area that is tissue; NaN for an empty region.

    By the mask at points of a grid over the region, at most 512 a side; what lies beyond the slide is no tissue.

    Args:
        region: level-0 px.
        mask: tissue, shape (row, column), covering the whole slide at any scale.
        size: (width, height) of the slide in level-0 px.
    """
    inside = shapely.intersection(region, shapely.box(0, 0, *size))
    if not region.area:
        return math.nan
    if not inside.area:
        return 0.0
    left, top, right, bottom = inside.bounds
    points = _points(inside, left, top, right, bottom)
    rows = np.minimum(points[:, 1] * mask.shape[0] / size[1], mask.shape[0] - 1).astype(np.intp)
    columns = np.minimum(points[:, 0] * mask.shape[1] / size[0], mask.shape[1] - 1).astype(np.intp)
    return float(mask[rows, columns].mean() * inside.area / region.area)


def _points(region: BaseGeometry, left: float, top: float, right: float, bottom: float) -> npt.NDArray[np.float64]:
    """Points of a grid that lie in the region, shape (n, 2).

    At least one.
    """
    steps = (np.arange(GRID_EDGE) + 0.5) / GRID_EDGE
    x, y = np.meshgrid(left + steps * (right - left), top + steps * (bottom - top))
    shapely.prepare(region)
    within = shapely.contains_xy(region, x.ravel(), y.ravel())
    points = np.column_stack([x.ravel(), y.ravel()])[within]
    return points if len(points) else np.array(region.representative_point().coords)
