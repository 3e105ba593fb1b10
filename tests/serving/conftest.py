"""Runs on features, what ``milcore predict`` says of their bags, and an application that serves them here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from milcore.config import PredictConfig, ServeConfig
from milcore.evaluation.evaluate import evaluate
from milcore.evaluation.predict_store import predict_parts, prepare_store_predictions, read_store_predictions
from milcore.runtime import storage
from milcore.serving.application import Models, make_application
from milcore.serving.replica import Replica
from milcore.serving.served_runs import served_models
from milcore.store.store import PatchStore
from tests.cohorts import write_features, write_store
from tests.evaluation.survival_store import survival_store
from tests.evaluation.survival_store import train as train_survival
from tests.evaluation.test_predict_store import TRAIN, train

SLIDES = 12
# each bag alone, as predict takes them
ONE_BY_ONE = ServeConfig(instances_per_batch=1)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of features and an evaluated run on it, ``run``."""
    folder = tmp_path_factory.mktemp("cohort")
    store = write_store(str(folder / "store"), SLIDES)
    write_features(store)
    evaluate(train(store, str(folder / "run")), baselines=False, attention_formats=())
    train(store, str(folder / "other"), TRAIN.model_copy(update={"seed": 3}))
    return folder


@pytest.fixture(scope="session")
def survival(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survival")
    store = survival_store(str(folder / "store"), patients=24)
    train_survival(store, str(folder / "run"))
    return folder


@pytest.fixture(scope="session")
def rows(cohort: Path) -> dict[str, dict[str, Any]]:
    """Rows of ``milcore predict --store``, by slide."""
    return predicted(cohort / "run", cohort / "store", cohort / "predictions")


def predicted(run: Path, store: Path, out: Path) -> dict[str, dict[str, Any]]:
    options = PredictConfig(attention_formats=("parquet",))
    prepare_store_predictions(str(run), str(store), str(out), options)
    predict_parts(str(out), "cpu")
    return {row["slide_id"]: row for row in read_store_predictions(str(out))["slides"]}


def columns_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row is of the models."""
    others = {"slide_id", "patient_id", "status", "patches", "reason"}
    return {name: value for name, value in row.items() if name not in others}


def features_of(cohort: Path, slide_id: str) -> np.ndarray:
    features = PatchStore(str(cohort / "store")).slide(slide_id).features("mean_rgb")
    return features.read(0, features.shape[0])


def attention_of(cohort: Path, slide_id: str) -> np.ndarray:
    table = storage.read_table(str(cohort / "predictions" / "attention" / f"{slide_id}.parquet"))
    return table["weight"].to_numpy()


def application_of(runs: Sequence[str], config: ServeConfig = ONE_BY_ONE, token_digest: str | None = None) -> FastAPI:
    """The application with a replica of each run in this process."""
    served = {model.name: model for model in served_models(runs)}
    replicas = {
        name: Replica(model.run, use_gpu=False, instances_per_batch=config.instances_per_batch, workers_here=1)
        for name, model in served.items()
    }

    async def ready() -> dict[str, bool]:
        return dict.fromkeys(served, True)

    models = Models(served, {name: replica.score for name, replica in replicas.items()}, ready)
    return make_application(models, config, token_digest)


@pytest.fixture(scope="session")
def application(cohort: Path) -> FastAPI:
    return application_of([str(cohort / "run"), f"second={cohort / 'other'}"])
