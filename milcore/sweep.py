"""A sweep folder: which trials there are, and what is kept of them. Knows nothing of Ray.

``config.json`` says what the sweep is, ``splits.parquet`` what it may look at; ``trials.parquet`` and ``best.json``
come at its end, ``best.json`` last: a sweep that has it is finished.
"""

import math
import random
from typing import NamedTuple

import pyarrow as pa

from milcore import __version__, storage
from milcore.config import Config, SplitConfig, TrainConfig, TuneConfig, parse_config
from milcore.errors import ClusterError, InputError
from milcore.metrics import Validation
from milcore.run import SPLITS, choose_splits, claim_folder, instance_digest, read_claim
from milcore.splits import splits_digest
from milcore.store import PatchStore

TRIALS = "trials.parquet"
BEST = "best.json"


class SweepSpec(Config):
    """What a sweep folder is: written before the first trial, and compared when the folder is reused."""

    milcore_version: str
    store_uri: str
    instance_digest: str
    splits_digest: str
    tune: TuneConfig


class TrialResult(NamedTuple):
    """One row of ``trials.parquet``: what validation says of a trial's best epoch."""

    trial: int
    pooling: str
    learning_rate: float
    epochs: int
    val_loss: float
    val_auroc: float
    state: str
    reason: str | None


def prepare_sweep(
    store_uri: str, out_uri: str, config: TuneConfig, split_config: SplitConfig, splits_uri: str | None
) -> SweepSpec:
    """Write what the sweep is: ``splits.parquet`` and ``config.json``.

    Args:
        store_uri: patch store to train on.
        out_uri: the sweep folder; one that already holds this very sweep is taken up again.
        config: the trials and the training they share.
        split_config: how to split the store's patients; not read when ``splits_uri`` is given.
        splits_uri: a splits.parquet to take over.

    Raises:
        InputError: the folder holds another sweep, or the split has nothing to train or choose on.
        StoreError: slides lack what is to be trained on.
    """
    store_uri = storage.absolute(store_uri)
    store = PatchStore(store_uri)
    splits = choose_splits(store, split_config, splits_uri)
    if "val" not in splits.column("split").to_pylist():
        raise InputError("the split has no validation slides, so no trial is better than another; raise val_fraction")
    spec = SweepSpec(
        milcore_version=__version__,
        store_uri=store_uri,
        instance_digest=instance_digest(store, config.train, splits.column("slide_id").to_pylist()),
        splits_digest=splits_digest(splits),
        tune=config,
    )
    claim_folder(out_uri, spec.model_dump(mode="json"))
    storage.write_table(storage.join(out_uri, SPLITS), splits)
    return spec


def read_sweep(out_uri: str) -> SweepSpec:
    """What the sweep is.

    Raises:
        InputError: no sweep folder stands there.
    """
    return read_claim(SweepSpec, out_uri, "sweep", "tune")


def read_best(out_uri: str) -> TrainConfig | None:
    """The settings the sweep chose; None until it is finished."""
    uri = storage.join(out_uri, BEST)
    return parse_config(TrainConfig, storage.read_json(uri)) if storage.exists(uri) else None


def trial_configs(config: TuneConfig) -> list[TrainConfig]:
    """The training settings of every trial, a function of the config alone.

    Trial k has pooling k modulo their number and ``learning_rate = exp(uniform(log min, log max))``.
    """
    draw = random.Random(config.tune_seed)  # noqa: S311 - nothing secret
    low, high = math.log(config.learning_rate_min), math.log(config.learning_rate_max)
    return [
        config.train.model_copy(
            update={
                "pooling": config.poolings[trial % len(config.poolings)],
                "learning_rate": math.exp(draw.uniform(low, high)),
            }
        )
        for trial in range(config.trials)
    ]


def publish(out_uri: str, spec: SweepSpec, results: list[TrialResult]) -> TrainConfig:
    """Write ``trials.parquet`` and ``best.json``: the trial that ranks first on validation.

    Raises:
        ClusterError: trials are missing, or none succeeded.
    """
    _check_all_ended(spec.tune.trials, results)
    best = min(
        (result for result in results if result.state == "ok"),
        key=lambda result: (Validation(result.val_loss, result.val_auroc).rank, result.trial),
    )
    rows = [result._asdict() for result in sorted(results)]
    storage.write_table(storage.join(out_uri, TRIALS), pa.Table.from_pylist(rows, schema=_SCHEMA))
    chosen = trial_configs(spec.tune)[best.trial]
    storage.write_json(storage.join(out_uri, BEST), chosen.model_dump(mode="json"))
    return chosen


def _check_all_ended(trials: int, results: list[TrialResult]) -> None:
    ended = sorted(result.trial for result in results)
    if ended != list(range(trials)):
        missing = sorted(set(range(trials)) - set(ended))
        raise ClusterError(f"{len(missing)} of {trials} trials have no result ({missing}); run the same sweep again")
    if not any(result.state == "ok" for result in results):
        raise ClusterError(f"all {trials} trials failed; the first: {results[0].reason}")


_SCHEMA = pa.schema(
    [
        ("trial", pa.int32()),
        ("pooling", pa.string()),
        ("learning_rate", pa.float64()),
        ("epochs", pa.int32()),
        ("val_loss", pa.float64()),
        ("val_auroc", pa.float64()),
        ("state", pa.string()),
        ("reason", pa.string()),
    ]
)
