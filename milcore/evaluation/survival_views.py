"""Attention and report views of the test slides of a survival run."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from milcore.evaluation.attention.write import SlideResult
from milcore.evaluation.regions import annotated_regions
from milcore.evaluation.report import SlideView
from milcore.evaluation.report.contents import FEW_SLIDES
from milcore.evaluation.run_predictions import RunPredictions
from milcore.evaluation.target import EvaluationOptions
from milcore.evaluation.views import AttentionSlide, write_views
from milcore.mil.inference import instance_columns
from milcore.runtime.progress import track

# of each kind, where the report does not show the pictures of all slides
SHOWN = 8


def risk_views(run: RunPredictions, options: EvaluationOptions) -> Iterator[SlideView]:
    """Write the attention of each test slide and yield its view in the report.

    With leave-one-out, ``leave_one_out`` is the risk of the patient less that without the patch: positive where the
    patch raises the risk.
    """

    def row(view: SlideView) -> dict[str, Any]:
        return {"risk": view.probabilities[0]}

    return write_views(run, _slides(run, options), _choices(run), options.files, row)


def _choices(run: RunPredictions) -> dict[str, str]:
    """Reason for the pictures of each slide: highest or lowest risk.

    Empty where the report shows those of all slides.
    """
    indices = run.bags.split("test")
    slides = [(index, slide_id) for index in indices for slide_id in run.bags.entries[index].slides]
    if len(slides) <= FEW_SLIDES:
        return {slide_id: "" for _, slide_id in slides}
    order = np.argsort([float(run.predictions[index].probability[0]) for index, _ in slides], kind="stable")
    kinds = {"high risk": order[::-1][:SHOWN], "low risk": order[:SHOWN]}
    return {slides[int(place)][1]: kind for kind, places in kinds.items() for place in places}


def _slides(run: RunPredictions, options: EvaluationOptions) -> Iterator[AttentionSlide]:
    """The slides of each test bag with what the models say of their instances."""
    indices = run.bags.split("test")
    groups = run.catalogue.slides([slide_id for index in indices for slide_id in run.bags.entries[index].slides])
    regions = annotated_regions(run, groups, options.annotations)
    for index in track(indices, "attention", len(indices)):
        entry, prediction = run.bags.entries[index], run.predictions[index]
        of_bag = instance_columns(run.models, run.bags[index], 0, with_leave_one_out=options.with_leave_one_out)
        columns = {name: entry.by_slide(values) for name, values in of_bag.items()}
        for slide_id, weight in entry.by_slide(prediction.attention).items():
            result = SlideResult(
                patient_id=entry.patient_id,
                label=entry.label,
                predicted_class=0,
                probabilities=tuple(prediction.probability.tolist()),
                std=float(prediction.std[0]) if run.spec.folds else None,
                attention=weight,
                region=regions.get(slide_id),
                localisation=None,
            )
            of_slide = {name: values[slide_id] for name, values in columns.items()}
            yield AttentionSlide(slide_id, entry.bag_id, result, of_slide)
