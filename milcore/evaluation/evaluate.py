"""Evaluate a finished run: predictions, metrics, attention, report and model card.

All choices are made on validation: the epoch in training, threshold and temperature here. Metrics of the test split
are computed once, and no choice depends on its labels.
"""

import posixpath
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from shapely.geometry.base import BaseGeometry

from milcore.cohort.annotations import Annotation, instance_labels, load_annotation, unmatched_classes
from milcore.cohort.label_changes import changes_text
from milcore.cohort.manifest import Slide
from milcore.config import ATTENTION_FORMATS, AnnotationConfig, AttentionFormat, LabelSource, RunSpec
from milcore.errors import InputError
from milcore.evaluation.attention.checks import InstanceLabels, check_attention
from milcore.evaluation.attention.write import AttentionFiles
from milcore.evaluation.baselines import compare
from milcore.evaluation.decision import choose_rule
from milcore.evaluation.gather_report import report_data
from milcore.evaluation.metrics_json import metrics_json
from milcore.evaluation.report import SweepTable, model_card, render
from milcore.evaluation.results import RunResults
from milcore.evaluation.run_predictions import RunPredictions, open_run
from milcore.evaluation.scores import SplitMetrics, measure
from milcore.evaluation.views import AttentionOutputs, slide_views
from milcore.metrics.classification import Comparison
from milcore.mil.device import compute_device
from milcore.runtime import storage
from milcore.runtime.progress import log_line
from milcore.runtime.threads import map_in_threads
from milcore.store.annotation_record import AnnotationRecord
from milcore.store.slide_group import SlideGroup
from milcore.training.run_files import publish, read_files, recorded_digests
from milcore.training.run_folder import Run
from milcore.training.sweep import Sweep

SLIDES_NAMED = 5


def evaluate(  # noqa: PLR0913 - one keyword per option of the command
    run_uri: str,
    *,
    baselines: bool = True,
    sweep_uri: str | None = None,
    attention_formats: Sequence[AttentionFormat] = ATTENTION_FORMATS,
    with_leave_one_out: bool = False,
    annotations: AnnotationConfig | None = None,
    labels_from: LabelSource | None = None,
    allow_program: bool = False,
    use_gpu: bool = False,
) -> dict[str, Any]:
    """Evaluate a run and write its predictions, metrics, attention, report and model card.

    Args:
        run_uri: a finished run, of one model or of folds (whose mean probability is taken).
        baselines: also train and show the rows the model has to beat.
        sweep_uri: the sweep whose best config this run took; its trials and verdict are shown.
        attention_formats: file formats of each test slide's attention.
        with_leave_one_out: also write the change of the log-odds without each instance; seconds a slide.
        annotations: fields that are set here override those that ingestion recorded.
        labels_from: ``run`` or ``manifest``, where the store's manifest has other labels or patients than the run was
            trained on; None refuses that. Classes stay in the run's order.
        allow_program: load an encoder that the run names and that is a program (TorchScript), which runs code of its
            author.
        use_gpu: compute on a CUDA device.

    Returns:
        The content of ``metrics.json``: each metric of the test split (None where undefined, see ``reasons``), their
        ``intervals``, the ``threshold``, and ``report``, here the report's URI.

    Raises:
        InputError: the run is not finished, an annotation cannot be read or is not the one that was ingested, the
            manifest's labels are no classes of the run, or the sweep saw its test split.
        StoreError: the store, the labels or the splits are not those the run was trained on.
    """
    device = compute_device(use_gpu)
    folder = Run(storage.absolute(run_uri))
    sweep = None if sweep_uri is None else _sweep_table(sweep_uri, folder)
    run = open_run(folder.uri, device, labels_from, allow_program=allow_program)
    rule = choose_rule(run.split("val"))
    publish({folder.predictions_uri: storage.table_bytes(_predictions_table(run))})
    groups = _groups(run)
    record = run.store.annotation_record()
    if annotations is not None:
        chosen = {name: getattr(annotations, name) for name in annotations.model_fields_set}
        record = replace(record, config=record.config.model_copy(update=chosen))
    _log_lacking_bounds(run)
    regions = _regions(run, groups, record)
    labels = _instance_labels(groups, regions)
    metrics = measure(run.split("test"), rule, run.spec.train.seed)
    checks = check_attention(run, rule, labels)
    metrics = metrics._replace(overall=metrics.overall | checks.estimates)
    comparison = [_run_row(run.spec, metrics)]
    if baselines:
        log_line("comparing with simple models")
        comparison += compare(run.spec.train, run.as_split, run.catalogue, labels, device)
    files = AttentionFiles(attention_formats, record.config.annotation_origin or "bounds")
    views = tuple(slide_views(run, rule, regions, checks, AttentionOutputs(files, with_leave_one_out)))
    evaluation = RunResults(run, rule, metrics, checks, comparison)
    summary = metrics_json(evaluation, posixpath.basename(folder.report_uri))
    data = report_data(evaluation, views, sweep)
    publish(
        {
            folder.model_card_uri: model_card(data).encode(),
            folder.report_uri: render(data).encode(),
            folder.metrics_uri: storage.json_bytes(summary),
        }
    )
    for warning in checks.warnings:
        log_line(f"warning: {warning}")
    return summary | {"report": folder.report_uri}


def download_overlays(run_uri: str, folder: str) -> None:
    """Download the index and the PNG pictures of a run's attention.

    Attention in other formats stays at its URI.
    """
    run = Run(run_uri)
    index = posixpath.basename(run.attention_index_uri)
    names = {*storage.names(run.attention_uri), *recorded_digests(run.attention_uri)}
    wanted = sorted(name for name in names if name == index or name.endswith(".png"))
    for name, data in read_files(run.attention_uri, wanted):
        storage.write_bytes(f"{folder}/{name}", data)


def _sweep_table(sweep_uri: str, run: Run) -> SweepTable:
    """Trials of a sweep, from which the run's test split was kept out.

    Raises:
        InputError: it was not, or the sweep is not finished.
    """
    sweep = Sweep(sweep_uri)
    sweep.require_best()
    patients = {row["patient_id"] for row in run.splits().to_pylist() if row["split"] == "test"}
    others = [row for row in sweep.splits().to_pylist() if row["split"] != "test"]
    slides = [row["slide_id"] for row in others if row["patient_id"] in patients]
    if slides:
        raise InputError(
            f"sweep: expected one that saw no patient of the run's test split, got {sweep_uri}, tuned on slides of "
            f"theirs ({changes_text(slides)}); allowed: the sweep whose splits.parquet the run was trained with; "
            "name that, or none"
        )
    return SweepTable(sweep.trials(), sweep.verdict().line)


def _predictions_table(run: RunPredictions) -> pa.Table:
    entries = run.bags.entries
    probability = np.array([run.predictions[index].probability for index in range(len(entries))])
    columns = {
        "slide_id": pa.array([";".join(entry.slides) for entry in entries], pa.string()),
        "patient_id": pa.array([entry.patient_id for entry in entries], pa.string()),
        "label": pa.array([entry.label for entry in entries], pa.int64()),
        "split": pa.array([entry.split for entry in entries], pa.string()),
        "fold": pa.array([run.fold(index) for index in range(len(entries))], pa.int32()),
    }
    if len(run.spec.classes) == 2:
        return pa.table(columns | {"probability": pa.array(probability[:, 1], pa.float64())})
    of_class = {
        f"probability_{name}": pa.array(probability[:, k], pa.float64()) for k, name in enumerate(run.spec.classes)
    }
    return pa.table(columns | of_class)


def _groups(run: RunPredictions) -> dict[str, SlideGroup]:
    """Slides of all splits that may hold positive instances."""
    classes = len(run.spec.classes)
    entries = [entry for entry in run.bags.entries if entry.label == 1 or classes > 2]
    names = [slide_id for entry in entries for slide_id in entry.slides]
    return run.catalogue.slides(names)


def _regions(run: RunPredictions, groups: dict[str, SlideGroup], record: AnnotationRecord) -> dict[str, BaseGeometry]:
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


def _log_lacking_bounds(run: RunPredictions) -> None:
    """Tell of slides whose scanned bounds an earlier version did not record."""
    lacking = [slide_id for slide_id, record in run.catalogue.records.items() if record and record.lacks_bounds]
    if lacking:
        log_line(
            f"{len(lacking)} slide(s) were ingested by an earlier version, which did not record their scanned bounds "
            f"({', '.join(lacking[:SLIDES_NAMED])}): annotations and attention are placed from the slide's corner; "
            "ingest them into a new store where QuPath shows only a part of them"
        )


def _instance_labels(groups: dict[str, SlideGroup], regions: dict[str, BaseGeometry]) -> InstanceLabels:
    """Instance labels of each slide, from its annotation, else those imported.

    An annotation needs the coordinates of patches; a slide with neither is left out.
    """

    def read(slide: SlideGroup) -> np.ndarray | None:
        if slide.slide_id in regions and slide.has_coords:
            return instance_labels(slide.coords, slide.patch_size_level0, regions[slide.slide_id])
        return None if slide.instance_labels is None else slide.instance_labels.astype(np.int64)

    labels_of = zip(groups, map_in_threads(read, groups.values(), storage.CONCURRENT_REQUESTS), strict=True)
    return {slide_id: labels for slide_id, labels in labels_of if labels is not None}


def _run_row(spec: RunSpec, metrics: SplitMetrics) -> Comparison:
    source = spec.train.features or f"{spec.train.encoder}, trained end to end"
    name = f"{spec.train.pooling.replace('_', ' ')} pooling, {spec.train.level} level"
    models = f"mean of {spec.folds} folds, " if spec.folds else ""
    return Comparison(name, f"this run, {models}on {source}", metrics.auroc, metrics.overall["localisation_auroc"])
