"""Training by AdamW on a device against fp64 on the CPU: alone, and by ranks that share the device.

Two ranks of gloo on one device, and one of NCCL where it is a GPU, as torch allows one rank of NCCL per GPU. Then how
often a step of a trained epoch waits for the device.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.correctness import CPU, Learned, deviation_row, weights_of
from benchmarks.gpu.row import Row, not_run
from milcore.config import TrainConfig
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.model import make_model
from milcore.training.context import LocalContext
from milcore.training.loop import train_model

PART = "training"
WIDTH, BAGS, EPOCHS = 48, 9, 20
CACHE = 1 << 30
CONFIG = TrainConfig(epochs=EPOCHS, batch_size=BAGS, hidden=32, attention_hidden=16, patience=EPOCHS)
# waits of the host for a value of the device
WAITS = ("aten::_local_scalar_dense", "aten::nonzero")


def training(device: torch.device) -> Iterator[Row]:
    """Rows of training alone and by ranks, and of waiting."""
    expected = learn("fp64", LocalContext(None, CPU))
    yield deviation_row(PART, f"{EPOCHS} steps, fp32", [learn("fp32", LocalContext(None, device))], expected, "fp32")
    for backend, ranks in (("gloo", 2), ("nccl", 1)):
        case = f"{ranks} rank(s) by {backend}, {EPOCHS} steps, fp32"
        if backend == "nccl" and device.type != "cuda":
            yield not_run(PART, case, "no GPU")
        else:
            yield deviation_row(PART, case, [learn_by_ranks(backend, ranks, device)], expected, "fp32")
    yield waits_row(device)


def bags() -> Bags:
    """Ragged bags of normal features whose mean tells the class."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 200, BAGS).tolist()
    rows = [torch.from_numpy(rng.normal(0.3 * (k % 2), 1.0, (n, WIDTH))).float() for k, n in enumerate(lengths)]
    entries = [BagEntry.of_slide(str(k), str(k), k % 2, "train", length) for k, length in enumerate(lengths)]
    return Bags(entries, lambda entry: rows[int(entry.bag_id)], CACHE)


class RankContext(LocalContext):
    """A rank of a process group, without a launcher."""

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(None, device)
        self.rank, self.world_size = rank, world_size


def learn(precision: str, ctx: LocalContext) -> Learned:
    """Training losses of all epochs and the weights."""
    config = CONFIG.model_copy(update={"precision": precision})
    result = train_model(config, bags(), ctx)
    losses = [row.value for row in result.history if (row.split, row.metric) == ("train", "loss")]
    before = weights_of(make_model(config, WIDTH, classes=2))
    return Learned(torch.tensor(losses, dtype=torch.float64), before, weights_of(result.model))


def learn_by_ranks(backend: str, ranks: int, device: torch.device) -> Learned:
    """The same by several processes on one device."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _learn_as_rank, (backend, ranks, str(device), folder), nprocs=ranks, start_method="spawn"
        )
        return Learned(*torch.load(Path(folder, "learned.pt"), weights_only=True))


def _learn_as_rank(rank: int, backend: str, ranks: int, device: str, folder: str) -> None:
    dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=rank, world_size=ranks)
    with contextlib.ExitStack() as ending:
        ending.callback(dist.destroy_process_group)
        learned = learn("fp32", RankContext(rank, ranks, torch.device(device)))
        if rank == 0:
            torch.save(tuple(learned), Path(folder, "learned.pt"))


def waits_row(device: torch.device) -> Row:
    """Reads of a value of the device by the host, per step of training and validation."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        learn("fp32", LocalContext(None, device))
    counts = {event.key: event.count for event in profiled.key_averages() if event.key in WAITS}
    figure = f"{sum(counts.values()) / EPOCHS:.1f}"
    note = ", ".join(f"{name.removeprefix('aten::')} {count}" for name, count in counts.items())
    return Row(PART, "reads of a device's value by the host, a step", figure, note=note)
