"""Checkpoints: the state of a training run, in a flat folder.

Weights and optimizer are safetensors, the rest is JSON; nothing is pickled. ``state.json`` is written last and holds
the digest of every other file: an incomplete or damaged folder is recognised and an older one is taken.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from milcore.errors import DamageError
from milcore.runtime import storage
from milcore.runtime.digest import OWN_DIGEST, with_own_digest, without_own_digest
from milcore.training.history import HistoryRow
from milcore.training.optimizer import Optimisation
from milcore.training.selection import NO_VALIDATION, Validation

MODEL, BEST, OPTIMIZER, EMA = (f"{name}.safetensors" for name in ("model", "best", "optimizer", "ema"))
STATE = "state.json"


@dataclass
class Progress:
    """Progress of a run: epochs done, their history, the best epoch and its weights."""

    epochs_done: int = 0
    history: list[HistoryRow] = field(default_factory=list)
    best_epoch: int = -1
    best: Validation = NO_VALIDATION
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(folder: Path, training: Optimisation, progress: Progress) -> None:
    """Write model, best weights, optimizer, moving average and progress; ``state.json`` last."""
    _save(training.model.state_dict(), folder / MODEL)
    _save(progress.best_weights, folder / BEST)
    _save(_optimizer_tensors(training.optimizer), folder / OPTIMIZER)
    if training.ema is not None:
        _save(training.ema.state_dict(), folder / EMA)
    state = {
        "epochs_done": progress.epochs_done,
        "best_epoch": progress.best_epoch,
        "best": progress.best,
        "history": progress.history,
        "files": {file.name: _digest(file) for file in sorted(folder.iterdir())},
    }
    (folder / STATE).write_text(json.dumps(with_own_digest(state)))


def is_intact(folder: Path) -> bool:
    """True where every file of a checkpoint has the digest in ``state.json``."""
    try:
        digests = _read_state(folder)["files"]
    except (FileNotFoundError, DamageError):
        return False
    return all((folder / name).is_file() and _digest(folder / name) == digest for name, digest in digests.items())


def load_checkpoint(folder: Path, training: Optimisation) -> Progress:
    """Restore model, optimizer and moving average in place; returns the progress."""
    training.model.load_state_dict(load_file(folder / MODEL))
    _restore_optimizer(training.optimizer, load_file(folder / OPTIMIZER))
    if training.ema is not None:
        training.ema.load_state_dict(load_file(folder / EMA))
    state = _read_state(folder)
    return Progress(
        epochs_done=state["epochs_done"],
        history=_history(state),
        best_epoch=state["best_epoch"],
        best=Validation(*state["best"]),
        best_weights=load_file(folder / BEST),
    )


def validations(folder: Path, metric: str) -> list[Validation]:
    """Validation of every epoch up to a checkpoint, by the metric of the target."""
    values = {(row.epoch, row.split, row.metric): row.value for row in _history(_read_state(folder))}
    epochs = sorted(epoch for epoch, split, metric in values if (split, metric) == ("val", "loss"))
    return [Validation(values[epoch, "val", "loss"], values[epoch, "val", metric]) for epoch in epochs]


def _history(state: dict[str, Any]) -> list[HistoryRow]:
    return [HistoryRow(*row) for row in state["history"]]


def _read_state(folder: Path) -> dict[str, Any]:
    values = storage.parse_json((folder / STATE).read_bytes(), str(folder / STATE))
    if isinstance(values.get(OWN_DIGEST), dict):  # of an earlier version: the digests of the other files
        return {**values, "files": values[OWN_DIGEST]}
    return without_own_digest(values, str(folder / STATE))


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
