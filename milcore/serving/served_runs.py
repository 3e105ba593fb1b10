"""Runs that can be served, and the descriptions of their models.

Made before anything starts, so that a run that cannot be served is an error of the command.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch

from milcore.config import read_places
from milcore.errors import InputError
from milcore.evaluation.predict import RESEARCH_USE, cohort_origin
from milcore.evaluation.prediction_rows import PREDICTION_ROWS
from milcore.evaluation.scorer import load_scorer, models_digest
from milcore.mil.bags.arrays import array_rows
from milcore.mil.inference import feature_widths
from milcore.serving.replica import ScoreTask, predict_tasks
from milcore.serving.served_model import ServedModel
from milcore.training.run_folder import Run

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def served_models(runs: Sequence[str]) -> list[ServedModel]:
    """Describe the models of runs.

    Args:
        runs: URI of each, or NAME=URI; without a name it is the last part of the URI.

    Raises:
        InputError: a run is not finished, reads patches, a name is none, or two runs have one name.
    """
    models = [_served_model(*_name_and_uri(run)) for run in runs]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"RUN: expected another name for each run, got {name!r} twice; allowed: NAME=URI; name one of them"
            )
    return models


def _name_and_uri(text: str) -> tuple[str, str]:
    name, equals, uri = text.partition("=")
    if not (equals and NAME.fullmatch(name)):
        uri = text
        name = Run(uri).uri.rstrip("/").rpartition("/")[2]
    if not NAME.fullmatch(name):
        raise InputError(
            f"RUN: expected a name for the paths of requests, got {name!r} of {uri}; allowed: letters, digits, dots, "
            "dashes and underscores, at most 100; name it by NAME=URI"
        )
    return name, uri


def _served_model(name: str, uri: str) -> ServedModel:
    run = Run(uri)
    scorer = load_scorer(run.uri, torch.device("cpu"), allow_program=False)
    widths = feature_widths(scorer.models)
    if not widths:
        raise InputError(
            f"{run.uri}: expected a run on features, got one on patches (encoder {scorer.spec.train.encoder}); "
            "allowed: runs on features; predict slides by milcore predict"
        )
    (width,) = widths
    is_placed = read_places([scorer.spec.train.pooling])
    if is_placed and scorer.by_patient:
        raise InputError(
            f"{run.uri}: expected a run on slides with pooling {scorer.spec.train.pooling}, which reads places, got "
            "one on patients, whose coords do not tell their slides apart; allowed: other poolings, or bags of slides; "
            "predict a store by milcore predict"
        )
    rows = PREDICTION_ROWS[scorer.spec.train.target]
    # of one instance: the columns that this run gives, and that the weights compute
    (rows_of_bag,) = array_rows([np.zeros((1, width), np.float32)]).values()
    (prediction,) = predict_tasks(scorer, [ScoreTask(rows_of_bag, np.zeros((1, 2)))])
    columns = rows.columns(scorer, prediction)
    types = {
        column: "BYTES" if isinstance(value, str) else "FP64" for column, value in columns.items() if value is not None
    }
    origin = cohort_origin(run.uri, scorer.spec)
    return ServedModel(
        name, run.uri, width, is_placed, types, models_digest(run, scorer.spec), origin.encoder, origin.encoder_id,
        {**rows.summary(scorer), "notice": RESEARCH_USE},
    )  # fmt: skip
