"""Ray Train runs the same loop: equal weights, checkpoints where they belong, and a cut run goes on."""

from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError
from safetensors.torch import load

from milcore.cluster.launch import train_with
from milcore.cluster.workers.train import SNAPSHOT, _AbortOnRepeatedError, _drop_torn_snapshot, is_deterministic
from milcore.config import LaunchConfig, SplitConfig, TrainConfig
from milcore.errors import InputError, MILError, StoreError, UnreachableError
from milcore.mil.model import make_model
from milcore.runtime import storage
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from tests.cohorts import write_features, write_store

# 7 training bags in batches of 2: 4 steps an epoch, 24 in all
TRAIN = TrainConfig(
    features="mean_rgb", hidden=8, attention_hidden=4, dropout=0.5, epochs=6, batch_size=2, checkpoint_every=2,
    learning_rate=0.01, patience=99, precision="fp64",
)  # fmt: skip
TWO = LaunchConfig(workers=2)
WIDTH = 3


def prepared(folder_uri: str, name: str, config: TrainConfig = TRAIN) -> str:
    store, run = storage.join(folder_uri, "store"), storage.join(folder_uri, name)
    if not storage.exists(storage.join(store, "manifest.parquet")):
        write_features(write_store(store))
    prepare_run(store, run, config, SplitConfig())
    return run


def weights(run: str) -> torch.Tensor:
    tensors = load(storage.read_bytes(storage.join(run, "model.safetensors")))
    return torch.cat([tensors[name].double().flatten() for name in sorted(names_learnt())])


def names_learnt() -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in make_model(TRAIN, WIDTH, classes=2).named_parameters()}


def distance(run: str, other: str) -> float:
    """|w - w'| / |w' - w_0|."""
    learnt = names_learnt()
    start = torch.cat([learnt[name].double().flatten() for name in sorted(learnt)])
    return float((weights(run) - weights(other)).norm() / (weights(other) - start).norm())


def epochs_seen(run: str) -> list[int]:
    rows = storage.read_table(storage.join(run, "history.parquet")).to_pylist()
    return [row["epoch"] for row in rows if (row["split"], row["metric"]) == ("train", "loss")]


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp64", 1e-9), pytest.param("fp32", 1e-3, marks=pytest.mark.long)]
)
def test_two_ray_workers_learn_the_weights_of_one(
    local_ray: None, tmp_path: Path, precision: str, tolerance: float
) -> None:
    config = TRAIN.model_copy(update={"precision": precision})
    alone, together = prepared(str(tmp_path), "alone", config), prepared(str(tmp_path), "together", config)
    train_with(alone, LaunchConfig())
    train_with(together, TWO)
    assert distance(together, alone) <= tolerance
    assert epochs_seen(together) == epochs_seen(alone) == list(range(6))
    kept = [name for name in storage.names(storage.join(together, "checkpoints")) if name.isdigit()]
    assert kept == ["0003", "0005"]
    assert "state.json" in storage.names(storage.join(together, "checkpoints", "0005"))


def test_a_finished_run_starts_no_worker(tmp_path: Path) -> None:
    run = prepared(str(tmp_path), "run")
    train_with(run, LaunchConfig())
    before = storage.stat(storage.join(run, "model.safetensors"))
    train_with(run, LaunchConfig(ray_address="127.0.0.1:1", workers=2))
    assert storage.stat(storage.join(run, "model.safetensors")) == before


class Cut(LocalContext):
    """Stops a run after its fourth epoch."""

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        super().report(epoch, metrics, checkpoint)
        if epoch == 3:
            raise KeyboardInterrupt


def test_a_run_begun_without_ray_goes_on_under_it_on_s3(local_ray: None, s3: str, tmp_path: Path) -> None:
    """Even where an attempt under Ray was cut short while it wrote what it knows of checkpoints."""
    folder = storage.join(s3, tmp_path.name)
    whole, run = prepared(folder, "whole"), prepared(folder, "run")
    train_with(whole, LaunchConfig())
    with pytest.raises(KeyboardInterrupt):
        train_run(run, Cut(storage.join(run, "checkpoints"), torch.device("cpu")))
    assert not storage.exists(storage.join(run, "checkpoints", "0005", "state.json"))
    storage.write_bytes(storage.join(run, "checkpoints", SNAPSHOT), b'{"checkpoint_resu')
    train_with(run, TWO)
    assert distance(run, whole) <= 1e-9
    assert epochs_seen(run) == list(range(6))


@pytest.mark.parametrize(("known", "kept"), [(["0003"], True), (["0003", "0005"], False), (None, False)])
def test_what_ray_knows_is_dropped_where_it_is_not_so(tmp_path: Path, known: list[str] | None, kept: bool) -> None:
    (tmp_path / "0003").mkdir()
    results = {} if known is None else {"checkpoint_results": [{"checkpoint_dir_name": name} for name in known]}
    storage.write_json(str(tmp_path / SNAPSHOT), results)
    _drop_torn_snapshot(str(tmp_path))
    assert (tmp_path / SNAPSHOT).exists() == kept


def test_an_error_that_would_come_again_ends_the_run_at_once(local_ray: None, tmp_path: Path) -> None:
    """The first epoch's one step breaks the weights; every attempt that got so far has left an event file."""
    hopeless = TRAIN.model_copy(update={"learning_rate": 1e300, "dropout": 0.0, "batch_size": 99})
    run = prepared(str(tmp_path), "run", hopeless)
    with pytest.raises(MILError, match=r"^epoch 1: the training loss is .*; lower learning_rate"):
        train_with(run, TWO)
    assert len(storage.names(storage.join(run, "tensorboard"))) == 1


@pytest.mark.parametrize(
    ("error", "comes_again"),
    [
        (StoreError("slide s1 is absent"), True),
        (TypeError("no such argument"), True),
        (KeyError("encoder.mean"), True),
        (UnreachableError("the folder cannot be written to"), False),
        (OSError("connection reset"), False),
        (RuntimeError("Connection closed by peer"), False),
        (ActorDiedError(), False),
    ],
)
def test_only_what_another_worker_would_raise_too_ends_a_run(error: Exception, comes_again: bool) -> None:
    assert is_deterministic(error) == comes_again


def test_a_runtime_error_is_tried_again_until_it_comes_word_for_word() -> None:
    ends = _AbortOnRepeatedError()
    ends.after_exception(None, {0: RuntimeError("closed by peer 127.0.0.1:4001"), 1: ActorDiedError()})
    ends.after_exception(None, {0: RuntimeError("closed by peer 127.0.0.1:4002"), 1: ActorDiedError()})
    with pytest.raises(RuntimeError, match="4001"):
        ends.after_exception(None, {1: RuntimeError("closed by peer 127.0.0.1:4001")})


def test_a_folder_that_was_not_prepared_is_refused_before_any_worker_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run milcore train first"):
        train_with(str(tmp_path), TWO)
