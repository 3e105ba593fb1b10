"""Bags per second of training by number of threads, alone and on busy cores.

``python -m benchmarks.threads [--json] [--seconds S] [--rounds N]``

``train_model`` as it is, with its default settings (gated attention, 512 and 256 hidden units, dropout, steps of 8
bags), on random instances that lie in memory: no store, no Ray. A row is a shape: instances in a step, and what one
instance has, its width in features or the axes of a patch (encoder ``conv``). Each shape is trained on one thread and
on one for every CPU, in turn, ``--rounds`` times: once with nothing else that this benchmark started, once beside as
many processes that only count as there are CPUs, of the same priority. A figure is the median over the rounds of the
best epoch of each. The last column is what ``useful_threads`` chooses. OpenMP's threads spin or sleep while they wait,
as ``OMP_WAIT_POLICY`` says.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from milcore.config import TrainConfig
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.model import make_model
from milcore.mil.threads import useful_threads
from milcore.runtime.limits import cpus
from milcore.runtime.malloc import keep_freed_memory
from milcore.training import loop
from milcore.training.context import LocalContext
from milcore.training.loop import train_model

BATCH = 8
SHAPES = [
    *((rows, (width,)) for width in (384, 1024) for rows in (40, 160, 640, 1280, 2560, 10240)),
    *((rows, (edge, edge, 3)) for rows, edge in ((40, 28), (320, 28), (80, 96))),
]
INSTANCES_PER_EPOCH = 10_000
MOST_STEPS, EPOCHS = 10, 3
# ends with the process that started it
COUNT = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"
Row = dict[str, Any]


class Clock(LocalContext):
    """Keeps the speed of every epoch."""

    def __init__(self) -> None:
        super().__init__(None, torch.device("cpu"))
        self.bags_per_s: list[float] = []

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Keep the speed."""
        super().report(epoch, metrics, checkpoint)
        self.bags_per_s.append(metrics["train_bags_per_sec"])


def random_bags(rows: int, instance: tuple[int, ...]) -> Bags:
    """Bags of equal length, some steps of them; features are f2, patches u1."""
    generator = torch.Generator().manual_seed(0)
    length, steps = rows // BATCH, max(1, min(MOST_STEPS, INSTANCES_PER_EPOCH // rows))
    if len(instance) == 1:
        values = torch.randn(length, *instance, generator=generator).half()
    else:
        values = torch.randint(256, (length, *instance), generator=generator, dtype=torch.uint8)
    entries = [BagEntry.of_slide(f"{k}", f"{k}", k % 2, "train", length) for k in range(BATCH * steps)]
    return Bags(entries, lambda _: values, 10**12)


def training_config(instance: tuple[int, ...]) -> TrainConfig:
    """The defaults, with an encoder for the instances."""
    encoder: dict[str, Any] = {} if len(instance) == 1 else {"encoder": "conv"}
    return TrainConfig(epochs=EPOCHS, batch_size=BATCH, **encoder)


def bags_per_s(bags: Bags, config: TrainConfig, threads: int, seconds: float) -> float:
    """Speed of the best epoch in so many seconds.

    The number of threads is forced, whatever ``useful_threads`` would choose.
    """
    clock = Clock()
    began = time.perf_counter()
    while not clock.bags_per_s or time.perf_counter() - began < seconds:
        with forced_threads(threads):
            train_model(config, bags, clock)
    return max(clock.bags_per_s)


@contextlib.contextmanager
def forced_threads(count: int) -> Iterator[None]:
    """Let the training loop take so many threads."""
    chosen, loop.useful_threads = loop.useful_threads, lambda *_: count  # the loop looks it up there
    torch.set_num_threads(count)
    try:
        yield
    finally:
        loop.useful_threads = chosen
        torch.set_num_threads(cpus())


@contextlib.contextmanager
def busy_cores(processes: int) -> Iterator[None]:
    """Processes that only count, for the length of the context."""
    running = [subprocess.Popen([sys.executable, "-c", COUNT]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(rows: int, instance: tuple[int, ...], seconds: float, rounds: int) -> Row:
    """The row of a shape."""
    bags, config = random_bags(rows, instance), training_config(instance)
    row: Row = {"rows": rows, "instance": "x".join(map(str, instance)), "values": bags.instance().numel() * rows}
    for where, busy in (("alone", 0), ("busy", cpus())):
        with busy_cores(busy):
            taken = [[bags_per_s(bags, config, count, seconds) for count in (1, cpus())] for _ in range(rounds)]
        one, all_ = (statistics.median(column) for column in zip(*taken, strict=True))
        row |= {f"{where}_one": one, f"{where}_all": all_, f"{where}_gain": all_ / one}
    model = make_model(config, instance[-1], classes=2)
    return row | {"chosen": useful_threads(model, bags.instance(), rows)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print an object a row instead of a table")
    parser.add_argument("--seconds", type=float, default=0.5, help="at least, of each measurement (default: 0.5)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each figure (default: 3)")
    given = parser.parse_args()
    keep_freed_memory()
    if not given.json:
        policy = os.environ.get("OMP_WAIT_POLICY", "unset")
        print(f"OMP_WAIT_POLICY {policy}, {cpus()} CPUs\n")
        print("| rows | instance | values | alone, 1 thread | all | gain | busy, 1 thread | all | gain | chosen |")
        print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for rows, instance in SHAPES:
        row = measure(rows, instance, given.seconds, given.rounds)
        line = (
            "| {rows} | {instance} | {values:,} | {alone_one:.4g} | {alone_all:.4g} | {alone_gain:.2f} | "
            "{busy_one:.4g} | {busy_all:.4g} | {busy_gain:.2f} | {chosen} |"
        )
        print(json.dumps(row) if given.json else line.format(**row), flush=True)


if __name__ == "__main__":
    main()
