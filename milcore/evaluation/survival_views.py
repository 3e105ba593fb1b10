"""Attention and report views of the test slides of a survival run."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from milcore.evaluation.regions import annotated_regions
from milcore.evaluation.report import SlideView
from milcore.evaluation.report.contents import FEW_SLIDES
from milcore.evaluation.run_predictions import RunPredictions
from milcore.evaluation.target import EvaluationOptions
from milcore.evaluation.views import attention_slides, write_views

# of each kind, where the report does not show the pictures of all slides
SHOWN = 8


def risk_views(run: RunPredictions, options: EvaluationOptions) -> Iterator[SlideView]:
    """Write the attention of each test slide and yield its view in the report.

    With leave-one-out, ``leave_one_out`` is the risk of the patient less that without the patch: positive where the
    patch raises the risk.
    """

    def row(view: SlideView) -> dict[str, Any]:
        return {"risk": view.probabilities[0]}

    indices = run.bags.split("test")
    groups = run.catalogue.slides([slide_id for index in indices for slide_id in run.bags.entries[index].slides])
    regions = annotated_regions(run, groups, options.annotations)
    outputs = dict.fromkeys(indices, 0)
    slides = attention_slides(run, outputs, regions, {}, with_leave_one_out=options.with_leave_one_out)
    return write_views(run, slides, _choices(run), options.files, row)


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
