"""Cross-validation as one run: a model per fold, and the out-of-fold predictions.

Each fold is a run of its own in ``folds/<k>``. Every slide outside the test split is predicted once, by the model whose
training and validation bags hold no slide of its patient. The fan-out is an argument: ``map``, or one over machines.
"""

import functools
from collections.abc import Callable, Iterable

import pyarrow as pa
import torch

from milcore.config import RunSpec
from milcore.mil.bags.bags import Bags
from milcore.mil.bags.load import load_bags
from milcore.mil.inference import BagPrediction, predict_bags
from milcore.mil.memory import with_memory
from milcore.runtime import storage
from milcore.runtime.progress import log_line
from milcore.training.context import LocalContext
from milcore.training.history import with_fold
from milcore.training.run import train_run
from milcore.training.run_files import publish
from milcore.training.run_folder import Run
from milcore.training.target import TrainingTarget
from milcore.training.targets import TRAINING_TARGETS
from milcore.training.tensorboard import RunObserver

FanOut = Callable[[Callable[[int], int], Iterable[int]], Iterable[int]]


def train_folds(run_uri: str, device: str, fan_out: FanOut = map, workers_here: int = 1) -> None:
    """Train the unfinished folds of a prepared run and publish their out-of-fold predictions.

    Args:
        run_uri: the run folder.
        device: of every fold, ``cpu`` or ``cuda``.
        fan_out: applies a function to every fold, in any order.
        workers_here: folds at a time on one machine.
    """
    spec = Run(run_uri).spec()
    train = functools.partial(train_fold, run_uri, device, workers_here)
    for done, fold in enumerate(fan_out(train, range(spec.folds)), start=1):
        log_line(f"fold {fold} is trained; {done} of {spec.folds}")
    publish_folds(run_uri, spec)


def train_fold(run_uri: str, device: str, workers_here: int, fold: int) -> int:
    """Train a fold and write its out-of-fold predictions; returns the fold."""
    run = Run(run_uri).fold(fold)
    spec = run.spec()
    observer = RunObserver(run.uri, spec.train.epochs, f"fold {fold}, ")
    train_run(run.uri, LocalContext(run.checkpoints_uri, torch.device(device), observer, workers_here))
    bags = load_bags(spec.store_uri, with_memory(spec.train, workers_here), run.splits())
    predictions = predict_bags(run.models(allow_program=True), bags, bags.split("test"), torch.device(device))
    publish(
        {
            run.predictions_uri: storage.table_bytes(
                _predictions_table(TRAINING_TARGETS[spec.train.target], bags, predictions, fold)
            )
        }
    )
    return fold


def _predictions_table(
    target: TrainingTarget, bags: Bags, predictions: dict[int, BagPrediction], fold: int
) -> pa.Table:
    """Out-of-fold predictions of a fold.

    Its test split is validation in the run of all folds.
    """
    entries = [bags.entries[index] for index in predictions]
    outcomes, predicted = target.columns(entries, list(predictions.values()))
    return pa.table(
        {
            "slide_id": pa.array([";".join(entry.slides) for entry in entries], pa.string()),
            "patient_id": pa.array([entry.patient_id for entry in entries], pa.string()),
            **outcomes,
            "split": pa.array(["val"] * len(entries), pa.string()),
            "fold": pa.array([fold] * len(entries), pa.int32()),
            **predicted,
        }
    )


def publish_folds(run_uri: str, spec: RunSpec) -> None:
    """Join predictions and history of all folds; write ``out_of_fold.json`` last."""
    run = Run(run_uri)
    predictions = pa.concat_tables([run.fold(fold).predictions() for fold in range(spec.folds)])
    histories = [run.fold(fold).history() for fold in range(spec.folds)]
    history = pa.concat_tables(map(with_fold, histories, range(spec.folds)))
    # evaluation has written those of the test split too
    out_of_fold = TRAINING_TARGETS[spec.train.target].out_of_fold(predictions, spec)
    of_slides = {} if storage.exists(run.metrics_uri) else {run.predictions_uri: storage.table_bytes(predictions)}
    publish(
        {
            **of_slides,
            run.history_uri: storage.table_bytes(history),
            run.out_of_fold_uri: storage.json_bytes(out_of_fold.to_json()),
        }
    )
