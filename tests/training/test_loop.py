"""The loop: equal weights under one to four workers, resumption, selection on validation, and that it learns."""

import functools
import math
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from milcore.cohort.survival import FollowUp
from milcore.config import TrainConfig
from milcore.errors import MILError
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.bags.read_ahead import MOST_BAGS
from milcore.mil.classification import bag_losses
from milcore.mil.model import make_model
from milcore.training.batching import epoch_batches
from milcore.training.context import LocalContext, checkpoint_names
from milcore.training.loop import train_model

WIDTH = 6
CACHE = 1 << 30
CPU = torch.device("cpu")
SMALL = TrainConfig(hidden=8, attention_hidden=4, dropout=0.5, epochs=4, batch_size=3, learning_rate=0.01, patience=99)


def ragged_bags(classes: int = 2) -> Bags:
    """Twenty-one bags of 1 to 17 instances; in a bag of class c one instance is shifted by 3 c."""
    generator = torch.Generator().manual_seed(0)
    lengths = [1 + (5 * k) % 17 for k in range(21)]
    instances = {}
    for k, length in enumerate(lengths):
        instances[f"s{k}"] = torch.randn(length, WIDTH, generator=generator, dtype=torch.float64)
        instances[f"s{k}"][0] += 3.0 * (k % classes)
    entries = [
        BagEntry.of_slide(f"s{k}", f"p{k}", k % classes, "val" if k % 5 == 4 else "train", length)
        for k, length in enumerate(lengths)
    ]
    return Bags(entries, lambda entry: instances[entry.bag_id], CACHE)


def survival_bags() -> Bags:
    """The ragged bags with follow-up: shifted bags die sooner; times are tied, and a third of the bags is censored."""
    bags = ragged_bags()
    entries = [
        entry._replace(label=0, follow_up=FollowUp(float(1 + k // 3 % 4 + 3 * (k % 2 == 0)), int(k % 3 != 1)))
        for k, entry in enumerate(bags.entries)
    ]
    rows = {entry.bag_id: bags[k].instances for k, entry in enumerate(entries)}
    return Bags(entries, lambda entry: rows[entry.bag_id], CACHE)


def regression_bags() -> Bags:
    """The ragged bags with values, higher in shifted bags; every third bag is a patient's with two slides or more."""
    bags = ragged_bags()
    entries = [
        entry._replace(label=0, value=1e3 + 50.0 * (k % 2) + k, **(_slides(entry) if k % 3 == 0 else {}))
        for k, entry in enumerate(bags.entries)
    ]
    rows = {entry.bag_id: bags[k].instances for k, entry in enumerate(entries)}
    return Bags(entries, lambda entry: rows[entry.bag_id], CACHE)


def _slides(entry: BagEntry) -> dict[str, tuple[str, ...] | tuple[int, ...]]:
    """A bag's slides of at most four instances each."""
    lengths = tuple(min(4, entry.length - start) for start in range(0, entry.length, 4))
    return {"slides": tuple(f"{entry.bag_id}-{k}" for k in range(len(lengths))), "lengths": lengths}


def patch_bags() -> Bags:
    """Six bags of 12-px patches; positive ones are darker."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(100, 256, (6, 3, 12, 12, 3), generator=generator, dtype=torch.uint8)
    entries = [BagEntry.of_slide(f"s{k}", f"p{k}", k % 2, "val" if k > 3 else "train", 3) for k in range(6)]
    return Bags(entries, lambda entry: patches[int(entry.bag_id[1:])] - 90 * entry.label, CACHE)


class GroupContext:
    """A rank of a process group, without a launcher."""

    workers_here = 1

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size, self.device = rank, world_size, CPU

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        pass

    @contextmanager
    def restore(self) -> Iterator[None]:
        yield None

    def log(self, line: str) -> None:
        pass


FP64 = SMALL.model_copy(update={"precision": "fp64"})
SURVIVAL = TrainConfig.model_validate(
    FP64.model_dump(exclude={"batch_size", "bag"}) | {"target": "survival_cox", "time": "days", "event": "died"}
)
HAZARD = SURVIVAL.model_copy(update={"target": "survival_hazard", "hazard_intervals": 3})
REGRESSION = TrainConfig.model_validate(
    FP64.model_dump(exclude={"batch_size"}) | {"target": "regression", "target_column": "age", "bag": "patient"}
)
WORLD_SIZES = (2, 3, 4)
EQUALITY_CASES = {
    "fp64": (FP64, 1e-9),
    "fp64 instance level, several micro-batches": (
        FP64.model_copy(update={"level": "instance", "pooling": "mean", "activation_mb": 0.002}),
        1e-9,
    ),
    "fp64 in two passes, bags dealt to all": (
        FP64.model_copy(update={"pooling": "dsmil", "activation_mb": 0.002}),
        1e-9,
    ),
    "fp64 with a loss of instances, bags dealt to all": (
        FP64.model_copy(update={"pooling": "clam_mb", "clam_instances": 3, "activation_mb": 0.002}),
        1e-9,
    ),
    "fp64 a share of instances, bags dealt to all": (
        FP64.model_copy(update={"level": "instance", "pooling": "topk", "topk_instances": 0.4, "activation_mb": 0.002}),
        1e-9,
    ),
    "fp32": (SMALL.model_copy(update={"pooling": "attention"}), 1e-3),
    "a rank without a bag": (FP64.model_copy(update={"batch_size": 1, "epochs": 2}), 1e-9),
    "three classes, weighted, averaged": (
        FP64.model_copy(
            update={"class_balance": "weighted", "ema_decay": 0.9, "warmup_epochs": 1.0, "label_smoothing": 0.1}
        ),
        1e-9,
    ),
    "bags and instances sampled, constant learning rate": (
        FP64.model_copy(update={"class_balance": "sampled", "instances_per_bag": 5, "schedule": "constant"}),
        1e-9,
    ),
    "survival, all bags at once": (SURVIVAL.model_copy(update={"batch_size": "all"}), 1e-9),
    "survival, batches, in chunks and over ranks": (
        SURVIVAL.model_copy(update={"batch_size": 3, "activation_mb": 0.002, "ema_decay": 0.9}),
        1e-9,
    ),
    "survival, a rank without a bag, some batches without an event": (
        SURVIVAL.model_copy(update={"batch_size": 2}),
        1e-9,
    ),
    "survival, instances sampled": (SURVIVAL.model_copy(update={"batch_size": 7, "instances_per_bag": 5}), 1e-9),
    "survival by hazards, in chunks and over ranks": (
        HAZARD.model_copy(update={"activation_mb": 0.002, "ema_decay": 0.9}),
        1e-9,
    ),
    "survival by hazards, a rank without a bag": (HAZARD.model_copy(update={"batch_size": 1, "epochs": 2}), 1e-9),
    "regression, patients in chunks and over ranks": (
        REGRESSION.model_copy(update={"batch_size": 3, "activation_mb": 0.002, "ema_decay": 0.9, "huber_delta": 0.5}),
        1e-9,
    ),
    "regression, all bags at once, instances sampled": (
        REGRESSION.model_copy(update={"batch_size": "all", "instances_per_bag": 5, "epochs": 12}),
        1e-9,
    ),
    "regression, a rank without a bag": (REGRESSION.model_copy(update={"batch_size": 1, "epochs": 2}), 1e-9),
    "conv encoder from patches": (
        FP64.model_copy(update={"features": None, "encoder": "conv", "augment": True, "epochs": 2}),
        1e-9,
    ),
}
PATCH_CASES = {"conv encoder from patches"}
MULTICLASS_CASES = {"three classes, weighted, averaged"}


def bags_for(case: str) -> Bags:
    if case.startswith("survival"):
        return survival_bags()
    if case.startswith("regression"):
        return regression_bags()
    return patch_bags() if case in PATCH_CASES else ragged_bags(3 if case in MULTICLASS_CASES else 2)


def _train_as_rank(rank: int, folder: str) -> None:
    """Train every case in groups of two, three and four of the processes."""
    torch.set_num_threads(1)
    for world_size in (size for size in WORLD_SIZES if rank < size):
        group = f"file://{folder}/group{world_size}"
        dist.init_process_group("gloo", init_method=group, rank=rank, world_size=world_size)
        for name, (config, _) in EQUALITY_CASES.items():
            result = train_model(config, bags_for(name), GroupContext(rank, world_size))
            if rank == 0:
                torch.save(result.model.state_dict(), f"{folder}/{name} {world_size}.pt")
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_workers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, torch.Tensor]]:
    """The weights of a case, trained by so many processes."""
    folder = tmp_path_factory.mktemp("workers")
    mp.start_processes(_train_as_rank, (str(folder),), nprocs=WORLD_SIZES[-1], start_method="spawn")
    return lambda case, world_size: torch.load(folder / f"{case} {world_size}.pt", weights_only=True)


@functools.cache
def of_one(case: str) -> dict[str, torch.Tensor]:
    """The weights of a case, trained in this process."""
    return train_model(EQUALITY_CASES[case][0], bags_for(case), LocalContext(None, CPU)).model.state_dict()


def relative_distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """|a - b| / |b - start| over all weights."""

    def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([weights[name].double().flatten() for name in sorted(start)])

    return ((flat(a) - flat(b)).norm() / (flat(b) - flat(start)).norm()).item()


def parameters_of(config: TrainConfig, classes: int = 2) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in make_model(config, WIDTH, classes=classes).named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("case", EQUALITY_CASES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_several_workers_learn_the_weights_of_one(
    case: str, world_size: int, of_workers: Callable[[str, int], dict[str, torch.Tensor]]
) -> None:
    """AdamW steps (24 in most cases) on ragged bags with dropout; the last batch of an epoch is smaller."""
    config, tolerance = EQUALITY_CASES[case]
    start = parameters_of(config, 3 if case in MULTICLASS_CASES else 2)
    assert relative_distance(of_workers(case, world_size), of_one(case), start) <= tolerance


def test_batches_of_survival_without_an_event_are_left_out() -> None:
    bags = survival_bags()
    every = epoch_batches(FP64.model_copy(update={"batch_size": 2}), bags, 0)
    events = [sum(bags.entries[index].follow_up.event for index in batch) for batch in every]
    assert 0 in events
    batches = epoch_batches(SURVIVAL.model_copy(update={"batch_size": 2}), bags, 0)
    assert batches == [batch for batch, count in zip(every, events, strict=True) if count]


def test_an_instance_budget_does_not_change_the_weights() -> None:
    config = SMALL.model_copy(update={"precision": "fp64"})
    whole = train_model(config, ragged_bags(), LocalContext(None, CPU)).model.state_dict()
    cut = train_model(
        config.model_copy(update={"activation_mb": 0.001}), ragged_bags(), LocalContext(None, CPU)
    ).model.state_dict()
    assert relative_distance(cut, whole, parameters_of(config)) <= 1e-9


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    runs = [
        train_model(SMALL.model_copy(update={"seed": s}), ragged_bags(), LocalContext(None, CPU)) for s in (5, 5, 6)
    ]
    first, again, other = (run.model.classifier.weight for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_run_cut_short_goes_on_to_the_same_weights() -> None:
    config = SMALL.model_copy(update={"checkpoint_every": 1})
    whole = train_model(config, ragged_bags(), LocalContext(None, CPU))

    class Cut(LocalContext):
        def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
            super().report(epoch, metrics, checkpoint)
            if epoch == 1:
                raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(KeyboardInterrupt):
            train_model(config, ragged_bags(), Cut(folder, CPU))
        resumed = train_model(config, ragged_bags(), LocalContext(folder, CPU))
    assert [row.epoch for row in resumed.history] == [row.epoch for row in whole.history]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train_model(SMALL.model_copy(update={"checkpoint_every": 1}), ragged_bags(), LocalContext(str(tmp_path), CPU))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0002", "0003"]
    assert sorted(path.name for path in (tmp_path / "0003").iterdir()) == [
        "best.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_what_is_left_of_a_checkpoint_being_removed_is_removed_by_the_next_run(tmp_path: Path) -> None:
    """A process that was killed while it removed one had written all epochs, so that no report removes it."""
    config = SMALL.model_copy(update={"checkpoint_every": 1})
    train_model(config, ragged_bags(), LocalContext(str(tmp_path), CPU))
    whole = checkpoint_names(str(tmp_path))
    (tmp_path / "0000").mkdir()
    (tmp_path / "0000" / "best.safetensors").write_bytes(b"half of it")
    train_model(config, ragged_bags(), LocalContext(str(tmp_path), CPU))
    assert checkpoint_names(str(tmp_path)) == whole


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = SMALL.model_copy(update={"checkpoint_every": 1, "ema_decay": 0.5})
    whole = train_model(config, ragged_bags(), LocalContext(str(tmp_path), CPU))
    damaged = tmp_path / "0003" / "ema.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    again = train_model(config, ragged_bags(), LocalContext(str(tmp_path), CPU))
    assert "checkpoint 0003 is not whole" in capfd.readouterr().err
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_the_average_of_the_weights_is_what_is_validated_and_kept() -> None:
    """One epoch of one step: the average is the weights after it; after two steps at decay 1/4 it lies between them."""
    bags = bags_without_validation()
    averaging = SMALL.model_copy(update={"batch_size": 99, "ema_decay": 0.25, "schedule": "constant"})
    plain, averaged = (
        [
            train_model(averaging.model_copy(update={"epochs": n, "ema_decay": decay}), bags, LocalContext(None, CPU))
            for n in (1, 2)
        ]
        for decay in (0.0, 0.25)
    )
    first, second = (result.model.classifier.weight for result in plain)
    torch.testing.assert_close(averaged[0].model.classifier.weight, first)
    torch.testing.assert_close(averaged[1].model.classifier.weight, 0.25 * first + 0.75 * second)


def bags_without_validation() -> Bags:
    bags = ragged_bags()
    return bags.with_splits({entry.bag_id: "train" for entry in bags.entries})


def test_smoothed_losses_are_those_worked_by_hand() -> None:
    """A tenth of the label over two classes of probability 1/4 and 3/4: .95 log 4 + .05 log(4/3) for the first."""
    log_prob = torch.tensor([[0.25, 0.75], [0.25, 0.75]], dtype=torch.float64).log()
    labels = torch.tensor([0, 1])
    plain, smoothed = (bag_losses(log_prob, labels, share).tolist() for share in (0.0, 0.1))
    first, second = math.log(4), math.log(4 / 3)
    assert plain == pytest.approx([first, second])
    assert smoothed == pytest.approx([0.95 * first + 0.05 * second, 0.95 * second + 0.05 * first])


def test_the_training_loss_is_the_weighted_mean_over_bags() -> None:
    """At a vanishing learning rate and without dropout every bag meets the first weights, whatever its batch."""
    still = SMALL.model_copy(
        update={"epochs": 1, "learning_rate": 1e-12, "dropout": 0.0, "class_balance": "weighted", "precision": "fp64"}
    )
    losses = [
        train_model(still.model_copy(update={"batch_size": size}), ragged_bags(), LocalContext(None, CPU))
        .history[0]
        .value
        for size in (1, 5, 99)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0] == pytest.approx(losses[2], rel=1e-9)


def test_the_history_says_how_fast_and_how_much_of_it_was_waiting() -> None:
    history = train_model(SMALL, ragged_bags(), LocalContext(None, CPU)).history
    speed = [row.value for row in history if (row.split, row.metric) == ("train", "bags_per_sec")]
    waiting = [row.value for row in history if (row.split, row.metric) == ("train", "waiting")]
    assert len(speed) == len(waiting) == SMALL.epochs
    assert min(speed) > 0.0
    assert 0.0 <= min(waiting) <= max(waiting) <= 1.0


def test_the_epoch_of_highest_validation_auroc_then_lowest_loss_is_kept() -> None:
    result = train_model(SMALL.model_copy(update={"epochs": 12}), ragged_bags(), LocalContext(None, CPU))
    loss, auroc = ([r.value for r in result.history if (r.split, r.metric) == ("val", m)] for m in ("loss", "auroc"))
    assert result.best_epoch == min(range(12), key=lambda epoch: (-auroc[epoch], loss[epoch]))


def test_training_stops_after_patience_epochs_without_a_better_loss() -> None:
    config = SMALL.model_copy(update={"epochs": 200, "patience": 3, "learning_rate": 0.05})
    result = train_model(config, ragged_bags(), LocalContext(None, CPU))
    assert max(row.epoch for row in result.history) == result.best_epoch + 3


class EpochEnds(LocalContext):
    """Calls a function as each epoch ends, before the next begins."""

    def __init__(self, call: Callable[[int], object]) -> None:
        super().__init__(None, CPU)
        self.call = call

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        super().report(epoch, metrics, checkpoint)
        self.call(epoch)


def test_bags_of_the_next_epoch_are_read_before_it_begins_and_none_after_the_last() -> None:
    """More bags than are read ahead, of which none is kept: each is read for the statistics and once an epoch.

    One that is in work for the end of an epoch is not read again for the beginning of the next.
    """
    count, opened, opens = 3 * MOST_BAGS, Counter[str](), threading.Condition()
    instances = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))

    def open_rows(entry: BagEntry) -> torch.Tensor:
        with opens:
            opened[entry.bag_id] += 1
            opens.notify_all()
        return instances[int(entry.bag_id)][None]

    bags = Bags([BagEntry.of_slide(str(k), str(k), k % 2, "train", 1) for k in range(count)], open_rows, 0)

    def await_next(epoch: int) -> None:
        later = [str(k) for k in range(1, count)]  # the first is opened for the shape of an instance too
        with opens:
            is_last = epoch + 1 == SMALL.epochs
            assert is_last or opens.wait_for(lambda: max(opened[name] for name in later) == epoch + 3, timeout=60)

    train_model(SMALL, bags, EpochEnds(await_next))
    assert max(opened[str(k)] for k in range(1, count)) <= 1 + SMALL.epochs


@pytest.mark.parametrize("pooling", ["max", "attention", "gated_attention"])
@pytest.mark.parametrize("level", ["instance", "embedding"])
def test_every_model_learns_the_shifted_instance(pooling: str, level: str) -> None:
    config = SMALL.model_copy(update={"pooling": pooling, "level": level, "epochs": 40, "dropout": 0.0})
    result = train_model(config, ragged_bags(), LocalContext(None, CPU))
    final = {(r.split, r.metric): r.value for r in result.history if r.epoch == max(h.epoch for h in result.history)}
    assert final["train", "loss"] < 0.3


def test_bf16_learns_what_fp32_learns() -> None:
    config = SMALL.model_copy(update={"epochs": 30, "dropout": 0.0})
    losses = [
        min(
            r.value
            for r in train_model(
                config.model_copy(update={"precision": p}), ragged_bags(), LocalContext(None, CPU)
            ).history
            if r.metric == "loss"
        )
        for p in ("fp32", "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


@pytest.mark.parametrize(
    ("precision", "able", "warned"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)]
)
def test_bf16_on_a_cpu_that_emulates_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: str, able: bool, warned: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able, "avx2": True})
    train_model(SMALL.model_copy(update={"precision": precision, "epochs": 1}), ragged_bags(), LocalContext(None, CPU))
    assert ("emulates" in capsys.readouterr().err) is warned


def test_a_loss_that_is_not_finite_stops_the_run_with_advice() -> None:
    entries = [BagEntry.of_slide("s", "p", 1, "train", 2)]
    bags = Bags(entries, lambda _: torch.full((2, WIDTH), torch.nan), CACHE)
    with pytest.raises(MILError, match="lower learning_rate"):
        train_model(SMALL, bags, LocalContext(None, CPU))
