"""Attention of the test slides: its files, and each slide's view in the report."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from shapely.geometry.base import BaseGeometry

from milcore.evaluation.attention.checks import AttentionChecks
from milcore.evaluation.attention.write import (
    AttentionFiles,
    AttentionFolder,
    SlideResult,
    slide_view,
    write_attention,
)
from milcore.evaluation.decision import DecisionRule, predicted_classes
from milcore.evaluation.metrics_json import nan_to_none
from milcore.evaluation.report import PictureSizes, ScoredSlide, SlideView, choose_slides
from milcore.evaluation.run_predictions import RunPredictions
from milcore.mil.inference import instance_columns
from milcore.runtime import storage
from milcore.runtime.progress import track
from milcore.runtime.threads import map_in_threads
from milcore.training.run_files import publish, record_digests
from milcore.training.run_folder import Run

THREADS = 16
# in work at a time: a GeoJSON takes some kB of memory for each
MOST_INSTANCES = 200_000


class AttentionOutputs(NamedTuple):
    """Files of attention, with or without leave-one-out log-odds."""

    files: AttentionFiles
    with_leave_one_out: bool


class AttentionSlide(NamedTuple):
    """A test slide with its attention and the further columns of its table."""

    slide_id: str
    bag_id: str
    result: SlideResult
    columns: dict[str, np.ndarray]


def slide_views(
    run: RunPredictions,
    rule: DecisionRule,
    regions: Mapping[str, BaseGeometry],
    checks: AttentionChecks,
    outputs: AttentionOutputs,
) -> Iterator[SlideView]:
    """Write the attention of each test slide and yield its view in the report."""

    def row(view: SlideView) -> dict[str, Any]:
        return {"called": run.spec.classes[view.predicted_class], "probabilities": view.probabilities}

    slides = attention_slides(
        run,
        predicted_classes(run, rule),
        regions,
        checks.localisation.bags,
        with_leave_one_out=outputs.with_leave_one_out,
    )
    return write_views(run, slides, _choices(run, rule), outputs.files, row)


def write_views(
    run: RunPredictions,
    slides: Iterator[AttentionSlide],
    choices: Mapping[str, str],
    files: AttentionFiles,
    index_row: Callable[[SlideView], dict[str, Any]],
) -> Iterator[SlideView]:
    """Write the attention of slides and yield their views in the report.

    Slides are written by threads, their models run in this one. Ends with an index of all of them, ``index.json``.

    Args:
        run: with the slides of the store.
        slides: with their attention.
        choices: reason for the pictures of each slide that has some in the report.
        files: to write of each slide.
        index_row: columns of a slide's prediction in the index.
    """
    folder = AttentionFolder(Run(run.uri).attention_uri, files)
    sizes = PictureSizes.for_slides(len(choices))
    index_rows, digests = [], dict[str, str]()

    def write(slide: AttentionSlide) -> tuple[AttentionSlide, SlideView, dict[str, str]]:
        group = run.catalogue.slide(slide.slide_id)
        written = write_attention(folder, group, slide.result.attention, slide.columns)
        view = slide_view(group, slide.result, written, sizes, choices.get(slide.slide_id))
        return slide, view, written.digests

    for slide, view, of_slide in map_in_threads(write, slides, THREADS, _instances, MOST_INSTANCES):
        digests |= of_slide
        row = {"slide_id": slide.slide_id, "bag": slide.bag_id}
        index_rows.append(row | index_row(view) | {"entropy": nan_to_none(view.entropy)})
        yield view
    if digests:
        record_digests(folder.uri, digests)
    publish({Run(run.uri).attention_index_uri: storage.json_bytes(index_rows)})


def _instances(slide: AttentionSlide) -> float:
    return len(slide.result.attention)


def _choices(run: RunPredictions, rule: DecisionRule) -> dict[str, str]:
    """Reason for the pictures of each slide that has some in the report."""
    scored = [
        ScoredSlide(slide_id, run.bags.entries[index].label, tuple(run.predictions[index].probability.tolist()))
        for index in run.bags.split("test")
        for slide_id in run.bags.entries[index].slides
    ]
    threshold = None if rule.threshold is None else rule.threshold.value
    return choose_slides(scored, run.spec.classes, threshold, run.spec.train.seed)


def attention_slides(
    run: RunPredictions,
    outputs: Mapping[int, int],
    regions: Mapping[str, BaseGeometry],
    localisation: Mapping[str, float],
    *,
    with_leave_one_out: bool,
) -> Iterator[AttentionSlide]:
    """The slides of each test bag with what the models say of their instances.

    Args:
        run: with the slides of the store.
        outputs: of each test bag by its index, the output that is explained: the predicted class; 0 for other targets.
        regions: annotated, by slide.
        localisation: within-slide AUROC of attention, by slide.
        with_leave_one_out: also the change of that output without each instance.
    """
    for index in track(list(outputs), "attention", len(outputs)):
        entry, prediction, output = run.bags.entries[index], run.predictions[index], outputs[index]
        of_bag = instance_columns(run.models, run.bags[index], output, with_leave_one_out=with_leave_one_out)
        columns = {name: entry.by_slide(values) for name, values in of_bag.items()}
        for slide_id, weight in entry.by_slide(prediction.attention).items():
            result = SlideResult(
                patient_id=entry.patient_id,
                label=entry.label,
                predicted_class=output,
                probabilities=tuple(prediction.probability.tolist()),
                std=float(prediction.std[output]) if run.spec.folds else None,
                attention=weight,
                region=regions.get(slide_id),
                localisation=localisation.get(slide_id),
            )
            of_slide = {name: values[slide_id] for name, values in columns.items()}
            yield AttentionSlide(slide_id, entry.bag_id, result, of_slide)
