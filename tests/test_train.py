"""The loop: equal weights alone and under two workers, resumption, selection on validation, and that it learns."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from milcore.bags import BagEntry, Bags
from milcore.config import TrainConfig
from milcore.errors import MILError
from milcore.model import make_model
from milcore.train import LocalContext, fit

WIDTH = 6
CACHE = 1 << 30
CPU = torch.device("cpu")
SMALL = TrainConfig(hidden=8, attention_hidden=4, dropout=0.5, epochs=4, batch_size=3, learning_rate=0.01, patience=99)


def ragged_bags() -> Bags:
    """Twenty-one bags of 1 to 17 instances; in a positive bag one instance is shifted."""
    generator = torch.Generator().manual_seed(0)
    lengths = [1 + (5 * k) % 17 for k in range(21)]
    instances = {}
    for k, length in enumerate(lengths):
        instances[f"s{k}"] = torch.randn(length, WIDTH, generator=generator, dtype=torch.float64)
        instances[f"s{k}"][0] += 3.0 * (k % 2)
    entries = [
        BagEntry.of_slide(f"s{k}", f"p{k}", k % 2, "val" if k % 5 == 4 else "train", length)
        for k, length in enumerate(lengths)
    ]
    return Bags(entries, lambda entry: instances[entry.bag_id], CACHE)


def patch_bags() -> Bags:
    """Six bags of 12-px patches; positive ones are darker."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(100, 256, (6, 3, 12, 12, 3), generator=generator, dtype=torch.uint8)
    entries = [BagEntry.of_slide(f"s{k}", f"p{k}", k % 2, "val" if k > 3 else "train", 3) for k in range(6)]
    return Bags(entries, lambda entry: patches[int(entry.bag_id[1:])] - 90 * entry.label, CACHE)


class GroupContext:
    """A rank of a process group, without a launcher."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size, self.device = rank, world_size, CPU

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        pass

    @contextmanager
    def restore(self) -> Iterator[None]:
        yield None


FP64 = SMALL.model_copy(update={"precision": "fp64"})
EQUALITY_CASES = {
    "fp64": (FP64, 1e-9),
    "fp64 instance level, several micro-batches": (
        FP64.model_copy(update={"level": "instance", "pooling": "mean", "activation_mb": 0.002}),
        1e-9,
    ),
    "fp32": (SMALL.model_copy(update={"pooling": "attention"}), 1e-3),
    "a rank without a bag": (FP64.model_copy(update={"batch_size": 1, "epochs": 2}), 1e-9),
    "conv encoder from patches": (
        FP64.model_copy(update={"features": None, "encoder": "conv", "augment": True, "epochs": 2}),
        1e-9,
    ),
}


def bags_for(config: TrainConfig) -> Bags:
    return patch_bags() if config.features is None else ragged_bags()


def _train_as_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    for name, (config, _) in EQUALITY_CASES.items():
        result = fit(config, bags_for(config), GroupContext(rank, 2))
        if rank == 0:
            torch.save(result.model.state_dict(), f"{folder}/{name}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of each case, trained by two processes."""
    folder = tmp_path_factory.mktemp("two_workers")
    mp.start_processes(_train_as_rank, (str(folder),), nprocs=2, start_method="spawn", join=True)
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in EQUALITY_CASES}


def relative_distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """|a - b| / |b - start| over all weights."""

    def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([weights[name].double().flatten() for name in sorted(start)])

    return ((flat(a) - flat(b)).norm() / (flat(b) - flat(start)).norm()).item()


def parameters_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in make_model(config, WIDTH, classes=2).named_parameters()}


@pytest.mark.parametrize("case", EQUALITY_CASES)
def test_two_workers_learn_the_weights_of_one(case: str, of_two_workers: dict[str, dict[str, torch.Tensor]]) -> None:
    """AdamW steps (24 in the first three cases) on ragged bags with dropout; the last batch of an epoch is smaller."""
    config, tolerance = EQUALITY_CASES[case]
    alone = fit(config, bags_for(config), LocalContext(None, CPU)).model.state_dict()
    assert relative_distance(of_two_workers[case], alone, parameters_of(config)) <= tolerance


def test_an_instance_budget_does_not_change_the_weights() -> None:
    config = SMALL.model_copy(update={"precision": "fp64"})
    whole = fit(config, ragged_bags(), LocalContext(None, CPU)).model.state_dict()
    cut = fit(
        config.model_copy(update={"activation_mb": 0.001}), ragged_bags(), LocalContext(None, CPU)
    ).model.state_dict()
    assert relative_distance(cut, whole, parameters_of(config)) <= 1e-9


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    runs = [fit(SMALL.model_copy(update={"seed": s}), ragged_bags(), LocalContext(None, CPU)) for s in (5, 5, 6)]
    first, again, other = (run.model.classifier.weight for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_run_cut_short_goes_on_to_the_same_weights() -> None:
    config = SMALL.model_copy(update={"checkpoint_every": 1})
    whole = fit(config, ragged_bags(), LocalContext(None, CPU))

    class Cut(LocalContext):
        def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
            super().report(epoch, metrics, checkpoint)
            if epoch == 1:
                raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(KeyboardInterrupt):
            fit(config, ragged_bags(), Cut(folder, CPU))
        resumed = fit(config, ragged_bags(), LocalContext(folder, CPU))
    assert [row.epoch for row in resumed.history] == [row.epoch for row in whole.history]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    fit(SMALL.model_copy(update={"checkpoint_every": 1}), ragged_bags(), LocalContext(str(tmp_path), CPU))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0002", "0003"]
    assert sorted(path.name for path in (tmp_path / "0003").iterdir()) == [
        "best.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_the_epoch_of_highest_validation_auroc_then_lowest_loss_is_kept() -> None:
    result = fit(SMALL.model_copy(update={"epochs": 12}), ragged_bags(), LocalContext(None, CPU))
    loss, auroc = ([r.value for r in result.history if (r.split, r.metric) == ("val", m)] for m in ("loss", "auroc"))
    assert result.best_epoch == min(range(12), key=lambda epoch: (-auroc[epoch], loss[epoch]))


def test_training_stops_after_patience_epochs_without_a_better_loss() -> None:
    config = SMALL.model_copy(update={"epochs": 200, "patience": 3, "learning_rate": 0.05})
    result = fit(config, ragged_bags(), LocalContext(None, CPU))
    assert max(row.epoch for row in result.history) == result.best_epoch + 3


@pytest.mark.parametrize("pooling", ["max", "attention", "gated_attention"])
@pytest.mark.parametrize("level", ["instance", "embedding"])
def test_every_model_learns_the_shifted_instance(pooling: str, level: str) -> None:
    config = SMALL.model_copy(update={"pooling": pooling, "level": level, "epochs": 40, "dropout": 0.0})
    result = fit(config, ragged_bags(), LocalContext(None, CPU))
    final = {(r.split, r.metric): r.value for r in result.history if r.epoch == max(h.epoch for h in result.history)}
    assert final["train", "loss"] < 0.3


def test_bf16_learns_what_fp32_learns() -> None:
    config = SMALL.model_copy(update={"epochs": 30, "dropout": 0.0})
    losses = [
        min(
            r.value
            for r in fit(config.model_copy(update={"precision": p}), ragged_bags(), LocalContext(None, CPU)).history
            if r.metric == "loss"
        )
        for p in ("fp32", "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_a_loss_that_is_not_finite_stops_the_run_with_advice() -> None:
    entries = [BagEntry.of_slide("s", "p", 1, "train", 2)]
    bags = Bags(entries, lambda _: torch.full((2, WIDTH), torch.nan), CACHE)
    with pytest.raises(MILError, match="lower learning_rate"):
        fit(SMALL, bags, LocalContext(None, CPU))
