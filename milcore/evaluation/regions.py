"""Annotated regions of a run's slides, and labels of their instances."""

from collections.abc import Mapping
from functools import partial

import numpy as np
from shapely.geometry.base import BaseGeometry

from milcore.cohort.annotations import Annotation, instance_labels, load_annotation, unmatched_classes
from milcore.cohort.manifest import Slide
from milcore.errors import InputError
from milcore.evaluation.attention.checks import InstanceLabels
from milcore.evaluation.run_predictions import RunPredictions
from milcore.runtime import storage
from milcore.runtime.threads import map_in_threads
from milcore.store.annotation_record import AnnotationRecord
from milcore.store.slide_group import SlideGroup


def annotated_regions(
    run: RunPredictions, groups: Mapping[str, SlideGroup], record: AnnotationRecord
) -> dict[str, BaseGeometry]:
    """Annotated regions of these slides, level-0 px.

    A slide without annotated area is left out.

    Raises:
        InputError: an annotation is not the one that was ingested, or none has a class that was asked for.
    """
    manifest = run.store.manifest()
    annotated = [slide for slide in manifest.slides if slide.slide_id in groups and slide.annotation is not None]
    load = partial(_load_annotation, record=record)
    annotations = list(map_in_threads(load, annotated, storage.CONCURRENT_REQUESTS))
    if annotations:
        unmatched_classes([annotation.class_names for annotation in annotations], record.config)
    corners = (groups[slide.slide_id].bounds_corner for slide in annotated)
    regions = (
        annotation.region(record.config, corner) for annotation, corner in zip(annotations, corners, strict=True)
    )
    return {slide.slide_id: region for slide, region in zip(annotated, regions, strict=True) if not region.is_empty}


def _load_annotation(slide: Slide, record: AnnotationRecord) -> Annotation:
    """Read the annotation of a slide, which must be the one that ingestion recorded."""
    annotation = load_annotation(str(slide.annotation), slide.slide_id)
    expected = record.sha256.get(slide.slide_id, annotation.sha256)
    if annotation.sha256 != expected:
        raise InputError(
            f"annotation of slide {slide.slide_id}: expected the file that was ingested (sha256 {expected[:12]}…), got "
            f"another at {slide.annotation} ({annotation.sha256[:12]}…); restore it, or run milcore ingest again to "
            "take it"
        )
    return annotation


def region_labels(groups: Mapping[str, SlideGroup], regions: Mapping[str, BaseGeometry]) -> InstanceLabels:
    """Instance labels of each slide, from its annotation, else those imported.

    An annotation needs the coordinates of patches; a slide with neither is left out.
    """

    def read(slide: SlideGroup) -> np.ndarray | None:
        if slide.slide_id in regions and slide.has_coords:
            return instance_labels(slide.coords, slide.patch_size_level0, regions[slide.slide_id])
        return None if slide.instance_labels is None else slide.instance_labels.astype(np.int64)

    labels_of = zip(groups, map_in_threads(read, groups.values(), storage.CONCURRENT_REQUESTS), strict=True)
    return {slide_id: labels for slide_id, labels in labels_of if labels is not None}
