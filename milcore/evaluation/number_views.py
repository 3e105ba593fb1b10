"""Attention and report views of test slides where one number is predicted.

It is a risk, or a value.
"""

from collections.abc import Iterator, Mapping
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


def number_views(
    run: RunPredictions, options: EvaluationOptions, name: str, kinds: Mapping[str, Mapping[int, float]]
) -> Iterator[SlideView]:
    """Write the attention of each test slide and yield its view in the report.

    With leave-one-out, ``leave_one_out`` is the number of the bag less that without the patch: positive where the patch
    raises it.

    Args:
        run: with the slides of the store.
        options: of the evaluation.
        name: of the number, a column of the index of attention.
        kinds: of slides whose pictures are shown where the report does not show all, each with a score of every test
            bag by its index; the highest are shown.
    """

    def row(view: SlideView) -> dict[str, Any]:
        return {name: view.probabilities[0]}

    indices = run.bags.split("test")
    groups = run.catalogue.slides([slide_id for index in indices for slide_id in run.bags.entries[index].slides])
    regions = annotated_regions(run, groups, options.annotations)
    outputs = dict.fromkeys(indices, 0)
    slides = attention_slides(run, outputs, regions, {}, with_leave_one_out=options.with_leave_one_out)
    return write_views(run, slides, _choices(run, kinds), options.files, row)


def _choices(run: RunPredictions, kinds: Mapping[str, Mapping[int, float]]) -> dict[str, str]:
    """Reason for the pictures of each slide.

    Empty where the report shows those of all slides.
    """
    indices = run.bags.split("test")
    slides = [(index, slide_id) for index in indices for slide_id in run.bags.entries[index].slides]
    if len(slides) <= FEW_SLIDES:
        return {slide_id: "" for _, slide_id in slides}
    return {
        slides[int(place)][1]: kind
        for kind, scores in kinds.items()
        for place in np.argsort([-scores[index] for index, _ in slides], kind="stable")[:SHOWN]
    }
