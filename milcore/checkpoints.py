"""The state of a training run as a flat folder of safetensors and JSON: written whole, read whole, never a pickle."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from milcore.metrics import NO_VALIDATION, Validation

FILES = ("model.safetensors", "best.safetensors", "optimizer.safetensors", "state.json")


class HistoryRow(NamedTuple):
    """One number seen in training."""

    epoch: int
    split: str
    metric: str
    value: float


@dataclass
class Progress:
    """How far a run is: epochs done, everything measured, and the best weights on validation so far."""

    epochs_done: int = 0
    history: list[HistoryRow] = field(default_factory=list)
    best_epoch: int = -1
    best: Validation = NO_VALIDATION
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write model, best model, optimizer and progress; ``state.json`` last."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    save_file(progress.best_weights, folder / "best.safetensors")
    save_file(_optimizer_tensors(optimizer), folder / "optimizer.safetensors")
    state = {
        "epochs_done": progress.epochs_done,
        "best_epoch": progress.best_epoch,
        "best": progress.best,
        "history": progress.history,
    }
    (folder / "state.json").write_text(json.dumps(state))


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put model and optimizer back where ``save_checkpoint`` found them."""
    model.load_state_dict(load_file(folder / "model.safetensors"))
    _restore_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
    state = json.loads((folder / "state.json").read_text())
    return Progress(
        epochs_done=state["epochs_done"],
        history=[HistoryRow(*row) for row in state["history"]],
        best_epoch=state["best_epoch"],
        best=Validation(*state["best"]),
        best_weights=load_file(folder / "best.safetensors"),
    )


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value.contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
