"""The run folder: its paths, its ``config.json``, and how it is read again."""

import json
from typing import Any

import pyarrow as pa
from safetensors.torch import load, save

from milcore import __version__
from milcore.config import C, RunSpec, TrainConfig, parse_config
from milcore.errors import InputError
from milcore.mil.model import MILModel, make_model
from milcore.runtime import storage
from milcore.runtime.digest import digest, unique_digest
from milcore.training.checkpoints import HistoryRow

PUBLISHED = ("config.json", "splits.parquet", "model.safetensors", "metrics.json", "predictions.parquet", "report.html")


def run_state(run_uri: str) -> str:
    """Digest of a run's weights and of what was published of it."""
    try:
        found = {name: storage.stat(storage.join(run_uri, name)) for name in PUBLISHED}
    except FileNotFoundError:
        return unique_digest()
    return digest(found)


CONFIG = "config.json"
SPLITS = "splits.parquet"
MODEL = "model.safetensors"
HISTORY = "history.parquet"
CHECKPOINTS = "checkpoints"
FOLDS = "folds"
OUT_OF_FOLD = "out_of_fold.json"


def fold_folder(run_uri: str, fold: int) -> str:
    """The folder of a fold: a run of its own."""
    return storage.join(run_uri, FOLDS, str(fold))


def claim_folder(uri: str, spec: dict[str, object]) -> None:
    """Write ``config.json`` into a new folder, or check that the folder was made for the same one.

    Raises:
        InputError: it was made for another; every setting that differs is named.
    """
    config_uri = storage.join(uri, CONFIG)
    if not storage.exists(config_uri):
        storage.write_json(config_uri, spec)
        return
    before, now = _flat(storage.read_json(config_uri)), _flat(json.loads(json.dumps(spec)))
    changed = [
        f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise InputError(f"{uri} holds another run ({'; '.join(changed)}); take another folder or the same settings")


def read_spec(run_uri: str) -> RunSpec:
    """What the run is.

    Raises:
        InputError: no run folder stands there.
    """
    return read_claim(RunSpec, run_uri, "run", "train")


def read_claim(kind: type[C], uri: str, what: str, command: str) -> C:
    """The ``config.json`` that ``claim_folder`` wrote.

    Args:
        kind: its class.
        uri: the folder.
        what: what the folder is called in an error.
        command: the ``milcore`` command that makes such a folder.

    Raises:
        InputError: nobody claimed the folder.
    """
    try:
        values = storage.read_json(storage.join(uri, CONFIG))
    except FileNotFoundError:
        raise InputError(f"no {what} at {uri} ({CONFIG} is missing); run milcore {command} first") from None
    return parse_config(kind, values)


def read_out_of_fold(run_uri: str) -> dict[str, Any]:
    """Figures of the slides that a finished run of folds left out, from ``out_of_fold.json``."""
    return dict(storage.read_json(storage.join(run_uri, OUT_OF_FOLD)))


def read_splits(run_uri: str) -> pa.Table:
    """The split of the run."""
    return storage.read_table(storage.join(run_uri, SPLITS))


def is_finished(run_uri: str) -> bool:
    """Whether the run has published its model, or the models of all its folds."""
    return any(storage.exists(storage.join(run_uri, name)) for name in (MODEL, OUT_OF_FOLD))


def history_table(history: list[HistoryRow]) -> pa.Table:
    """Columns fold (0), epoch, split, metric, value."""
    return pa.table(
        {
            "fold": pa.array([0] * len(history), pa.int32()),
            "epoch": pa.array([row.epoch for row in history], pa.int32()),
            "split": pa.array([row.split for row in history], pa.string()),
            "metric": pa.array([row.metric for row in history], pa.string()),
            "value": pa.array([row.value for row in history], pa.float64()),
        }
    )


def load_models(run_uri: str) -> tuple[RunSpec, tuple[MILModel, ...]]:
    """The published models of a run, on the CPU and in evaluation mode: one, or one per fold.

    Raises:
        InputError: the run, or one of its folds, is not finished.
    """
    spec = read_spec(run_uri)
    uris = [storage.join(folder, MODEL) for folder in model_folders(run_uri, spec.folds)]
    for uri in uris:
        if not storage.exists(uri):
            raise InputError(f"the run at {run_uri} is not finished ({uri} is missing); run milcore train again")
    return spec, tuple(_load_model(uri, spec.train) for uri in uris)


def model_folders(run_uri: str, folds: int) -> list[str]:
    """Where a run keeps its models and their histories: the run folder itself, or ``folds/<k>`` in it."""
    return [storage.join(run_uri, FOLDS, str(fold)) for fold in range(folds)] or [run_uri]


def _load_model(uri: str, config: TrainConfig) -> MILModel:
    weights = load(storage.read_bytes(uri))
    width = len(weights["encoder.mean"]) if "encoder.mean" in weights else 0
    logits = len(weights["classifier.bias"])
    model = make_model(config, width, classes=2 if logits == 1 else logits)
    model.load_state_dict(weights)
    return model.eval()


def model_bytes(model: MILModel, best_epoch: int) -> bytes:
    """The bytes of ``model.safetensors``; its metadata names the epoch."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    data: bytes = save(tensors, metadata={"milcore_version": __version__, "best_epoch": str(best_epoch)})
    return data


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
