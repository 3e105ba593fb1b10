"""Cross-validation as one run: a model per fold, each a run of its own below ``folds/<k>``, and what they say together.

Every slide outside the test split is predicted once, by the model that never saw its patient, not even to choose an
epoch. The fan-out is handed in; it may be ``map`` or one across machines.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from milcore.config import RunSpec
from milcore.metrics.auroc import auroc
from milcore.metrics.classification import auroc_estimate
from milcore.mil.bags.load import load_bags
from milcore.mil.inference import predict_bags
from milcore.runtime import storage
from milcore.runtime.progress import format_metric, log_line
from milcore.training.context import LocalContext
from milcore.training.history import with_fold
from milcore.training.run import train_run
from milcore.training.run_folder import Run
from milcore.training.tensorboard import RunWatch

FanOut = Callable[[Callable[[int], int], Iterable[int]], Iterable[int]]


def train_folds(run_uri: str, device: str, fan_out: FanOut = map) -> dict[str, Any]:
    """Train the folds of a prepared run, those that are not finished, and publish what they say of slides left out.

    Args:
        run_uri: the run folder.
        device: where each fold computes.
        fan_out: applies a function to every fold, in any order.

    Returns:
        The content of ``out_of_fold.json``.
    """
    spec = Run(run_uri).spec()
    work = functools.partial(train_fold, run_uri, device)
    for done, fold in enumerate(fan_out(work, range(spec.folds)), start=1):
        log_line(f"fold {fold} is trained; {done} of {spec.folds}")
    return publish_folds(run_uri, spec)


def train_fold(run_uri: str, device: str, fold: int) -> int:
    """Train a fold and write what it says of the slides it left out; returns the fold."""
    run, where = Run(run_uri).fold(fold), torch.device(device)
    spec = run.spec()
    watch = RunWatch(run.uri, spec.train.epochs, f"fold {fold}, ")
    train_run(run.uri, LocalContext(run.checkpoints_uri, where, watch))
    bags = load_bags(spec.store_uri, spec.train, run.splits())
    predictions = predict_bags(run.models(), bags, bags.split("test"), where)
    entries = [bags.entries[index] for index in predictions]
    table = pa.table(
        {
            "slide_id": pa.array([";".join(entry.slides) for entry in entries], pa.string()),
            "patient_id": pa.array([entry.patient_id for entry in entries], pa.string()),
            "label": pa.array([entry.label for entry in entries], pa.int64()),
            "split": pa.array(["val"] * len(entries), pa.string()),
            "fold": pa.array([fold] * len(entries), pa.int32()),
            "probability": pa.array([prediction.probability[1] for prediction in predictions.values()], pa.float64()),
        }
    )
    storage.write_table(run.predictions_uri, table)
    return fold


def publish_folds(run_uri: str, spec: RunSpec) -> dict[str, Any]:
    """Write predictions and history of all folds into the run folder, and ``out_of_fold.json`` last."""
    run = Run(run_uri)
    predictions = pa.concat_tables([storage.read_table(run.fold(fold).predictions_uri) for fold in range(spec.folds)])
    storage.write_table(run.predictions_uri, predictions)
    histories = [storage.read_table(run.fold(fold).history_uri) for fold in range(spec.folds)]
    storage.write_table(run.history_uri, pa.concat_tables(map(with_fold, histories, range(spec.folds))))
    summary = out_of_fold_summary(predictions, spec)
    storage.write_json(run.out_of_fold_uri, summary)
    return summary


def out_of_fold_summary(said: pa.Table, spec: RunSpec) -> dict[str, Any]:
    """The AUROC of all slides left out, pooled, with its patient-level interval, and that of each fold.

    Models of different folds are on one scale only roughly, so the pooled figure may lie below the mean of the folds'.
    None where it is not defined: one class, or more than two.
    """
    labels, probability, fold = (said[name].to_numpy() for name in ("label", "probability", "fold"))
    if len(spec.classes) > 2:
        return {"folds": spec.folds, "slides": len(said), "auroc": None, "interval": None, "fold_auroc": None}
    pooled = auroc_estimate(
        labels, np.stack([1 - probability, probability], axis=1), said["patient_id"].to_pylist(), spec.train.seed
    )
    of_folds = [auroc(labels[fold == k], probability[fold == k]) for k in range(spec.folds)]
    return {
        "folds": spec.folds,
        "slides": len(said),
        "auroc": _or_none(pooled.value),
        "interval": None if math.isnan(pooled.low) else [pooled.low, pooled.high],
        "fold_auroc": [_or_none(value) for value in of_folds],
    }


def line(summary: dict[str, Any]) -> str:
    """What a person reads of it."""
    within = "" if summary["interval"] is None else " ({:.3f} to {:.3f})".format(*summary["interval"])
    return f"{summary['folds']} models; pooled AUROC of the slides left out {format_metric(summary['auroc'])}{within}"


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
