"""The tables of targets: one row for every target in every room."""

import pytest

from milcore.cohort.targets import COHORT_TARGETS
from milcore.config import SURVIVAL_TARGETS, TARGETS
from milcore.evaluation.evaluation import FIGURES
from milcore.evaluation.prediction_rows import PREDICTION_ROWS
from milcore.evaluation.survival_curves import SURVIVAL_MODELS
from milcore.evaluation.targets import EVALUATION_TARGETS
from milcore.mil.targets import MODEL_TARGETS
from milcore.training.selection import RANK_METRICS
from milcore.training.targets import TRAINING_TARGETS
from pipeline.__main__ import FIGURES as PIPELINE_FIGURES

TABLES = {
    "cohort": COHORT_TARGETS,
    "mil": MODEL_TARGETS,
    "training": TRAINING_TARGETS,
    "ranks of training": RANK_METRICS,
    "evaluation": EVALUATION_TARGETS,
    "predictions of evaluation": PREDICTION_ROWS,
    "figures of evaluation": FIGURES,
    "figures of pipelines": PIPELINE_FIGURES,
}


@pytest.mark.parametrize("room", TABLES)
def test_every_room_has_a_row_for_every_target(room: str) -> None:
    assert tuple(TABLES[room]) == TARGETS


def test_every_survival_target_has_curves_and_words() -> None:
    assert tuple(SURVIVAL_MODELS) == SURVIVAL_TARGETS
