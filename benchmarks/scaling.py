"""What more workers bring: training by the product's own command path under Ray, and sweeps against trials in turn.

``python -m benchmarks.scaling [--json] [--bags N] [--instances N] [--epochs N] [--nodes N] [--sweep]``

Each worker computes on one thread (``OMP_NUM_THREADS=1``), whatever their number, on the same bags of random features
(n, 1024) f2 and the same global batch, gated attention with 512 and 256 hidden units. Rows: ``fit`` in this process
(without Ray), then 1 and 2 workers under Ray Train; with ``--nodes N`` also so many workers on as many nodes of one CPU
each, raylets of this machine started by ``ray start``.

Medians over the epochs after the first, from the run's own history: bags per second of the training pass, and the share
of time in which workers waited for instances. Efficiency is bags per second against so many times that of one worker
under Ray. Start is the time from the command to the end of the first epoch, less the median time between epochs; an
epoch's overhead is the time between two epochs less that of the same in this process. With ``--sweep``: trials per hour
of a sweep of eight equal trials at two a time, against them one after another.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milcore import storage
from milcore.cluster.launch import train_with, tune_with
from milcore.config import LaunchConfig, SplitConfig, TrainConfig, TuneConfig
from milcore.manifest import Manifest, Slide
from milcore.run import prepare_run
from milcore.store import PatchStore
from milcore.sweep import prepare_sweep

WIDTH = 1024
PORT = 6379
TRIALS = 8


def write_store(uri: str, bags: int, instances: int) -> None:
    """Slides that consist of random features, every other one positive."""
    store, generator = PatchStore(uri), np.random.default_rng(0)
    slides = tuple(Slide(f"s{k}", f"s{k}", k % 2, f"p{k}", "", None, "train", None) for k in range(bags))
    slides += tuple(Slide(f"v{k}", f"v{k}", k % 2, f"q{k}", "", None, "val", None) for k in range(2))
    store.write_manifest(Manifest(slides, ("0", "1")))
    for slide in slides:
        with store.writer(slide.slide_id, {"patches": instances}, patch_size=None, codec="none", quality=90):
            pass  # a slide without pixels
        features = generator.standard_normal((instances, WIDTH), np.float32).astype(np.float16)
        store.slide(slide.slide_id).write_features("f", features, {})


def measure_training(store: str, run: str, config: TrainConfig, launch: LaunchConfig) -> dict[str, Any]:
    """One run, timed from outside and by its own history."""
    prepare_run(store, run, config, SplitConfig(), None)
    started = time.time()
    train_with(run, launch)
    ended = epoch_ends(run)
    between = statistics.median(np.diff(ended))
    return {
        "bags_per_sec": statistics.median(figures(run, "bags_per_sec")[1:]),
        "waiting": statistics.median(figures(run, "waiting")[1:]),
        "epoch_s": between,
        "start_s": ended[0] - started - between,
    }


def epoch_ends(run: str) -> list[float]:
    """When each epoch was reported, by the run's event file."""
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415 - it imports a cloud's storage client

    (name,) = storage.names(storage.join(run, "tensorboard"))
    data, place, times = storage.read_bytes(storage.join(run, "tensorboard", name)), 0, []
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        event = Event.FromString(data[place + 12 : place + 12 + length])
        if event.summary.value:
            times.append(event.wall_time)
        place += 16 + length
    return times


def figures(run: str, metric: str) -> list[float]:
    """A figure of the training split, by epoch."""
    rows = storage.read_table(storage.join(run, "history.parquet")).to_pylist()
    return [row["value"] for row in rows if (row["split"], row["metric"]) == ("train", metric)]


@contextlib.contextmanager
def nodes(count: int) -> Iterator[str]:
    """The address of a cluster of so many nodes of one CPU, each a raylet of this machine, and a head without any."""
    ray = str(Path(sys.executable).with_name("ray"))
    begin = [ray, "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    head = [*begin, "--head", f"--port={PORT}", "--num-cpus=0", "--dashboard-host=127.0.0.1"]
    surroundings = os.environ | {"PATH": f"{Path(ray).parent}{os.pathsep}{os.environ['PATH']}"}
    with contextlib.ExitStack() as stack:
        for command in [head] + [[*begin, f"--address=127.0.0.1:{PORT}", "--num-cpus=1"]] * count:
            with tempfile.NamedTemporaryFile() as log:
                node = subprocess.Popen(
                    command, env=surroundings, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
                )
                stack.callback(os.killpg, node.pid, signal.SIGKILL)
                while b"Ray runtime started" not in Path(log.name).read_bytes():
                    if node.poll() is not None:
                        raise RuntimeError(f"no node: {Path(log.name).read_text()[-2000:]}")
                    time.sleep(0.1)
        yield f"127.0.0.1:{PORT}"


def training_rows(folder: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per way to train."""
    config = TrainConfig(
        features="f", epochs=given.epochs, patience=given.epochs, batch_size=8, checkpoint_every=given.epochs
    )
    store = storage.join(folder, "store")
    write_store(store, given.bags, given.instances)
    alone = measure_training(store, f"{folder}/alone", config, LaunchConfig())
    yield {"where": "this process", "workers": 0, **alone}
    one = None
    for workers in (1, 2):
        row = measure_training(store, f"{folder}/ray{workers}", config, LaunchConfig(workers=workers))
        one = one or row["bags_per_sec"]
        yield {"where": "Ray", "workers": workers, **compared(row, workers, one, alone)}
    if given.nodes:
        with nodes(given.nodes) as address:
            launch = LaunchConfig(workers=given.nodes, ray_address=address)
            row = measure_training(store, f"{folder}/nodes", config, launch)
        yield {"where": f"Ray, {given.nodes} nodes", "workers": given.nodes, **compared(row, given.nodes, one, alone)}


def compared(row: dict[str, Any], workers: int, one: float | None, alone: dict[str, Any]) -> dict[str, Any]:
    """The row with its efficiency and, for one worker, what Ray adds to an epoch."""
    efficiency = row["bags_per_sec"] / (workers * (one or row["bags_per_sec"]))
    overhead = {"epoch_overhead_s": row["epoch_s"] - alone["epoch_s"]} if workers == 1 else {}
    return {**row, "efficiency": efficiency, **overhead}


def sweep_row(folder: str, given: argparse.Namespace) -> dict[str, Any]:
    """Trials per hour, two at a time and one after another in this process, without early stopping gaining anything."""
    train = TrainConfig(features="f", epochs=given.epochs, patience=given.epochs, batch_size=8)
    rate = train.learning_rate
    config = TuneConfig(
        poolings=("gated_attention",), trials=TRIALS, learning_rate_min=rate, learning_rate_max=rate, train=train
    )
    store, out = storage.join(folder, "store"), storage.join(folder, "sweep")
    prepare_sweep(store, out, config, SplitConfig(), None)
    started = time.perf_counter()
    tune_with(out, LaunchConfig(workers=2))
    together = time.perf_counter() - started
    epochs = sum(row["epochs"] for row in storage.read_table(storage.join(out, "trials.parquet")).to_pylist())
    run = f"{folder}/one"
    prepare_run(store, run, train, SplitConfig(), None)
    started = time.perf_counter()
    train_with(run, LaunchConfig())
    in_turn = (time.perf_counter() - started) * epochs / given.epochs
    return {
        "trials": TRIALS,
        "epochs": epochs,
        "trials_per_hour": 3600 * TRIALS / together,
        "trials_per_hour_in_turn": 3600 * TRIALS / in_turn,
        "ratio": in_turn / together,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    parser.add_argument("--bags", type=int, default=64, help="training bags (default: 64)")
    parser.add_argument("--instances", type=int, default=4000, help="of each bag (default: 4000)")
    parser.add_argument("--epochs", type=int, default=8, help="of each run (default: 8)")
    parser.add_argument("--nodes", type=int, default=0, help="also on so many nodes of one CPU (default: none)")
    parser.add_argument("--sweep", action="store_true", help="also a sweep of eight trials")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which Ray starts from here
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(training_rows(folder, given))
        sweep = sweep_row(folder, given) if given.sweep else None
    if given.json:
        print(json.dumps({"training": rows, "sweep": sweep, "torch": torch.__version__}, indent=1))
        return
    print("| where | workers | bags/s | efficiency | epoch, s | Ray's part of it, s | start, s | waiting |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        efficiency, overhead = row.get("efficiency"), row.get("epoch_overhead_s")
        shown = ["" if value is None else f"{value:.2f}" for value in (efficiency, row["epoch_s"], overhead)]
        cells = [row["where"], str(row["workers"]), f"{row['bags_per_sec']:.1f}", *shown]
        print("| " + " | ".join([*cells, f"{row['start_s']:.1f}", f"{row['waiting']:.1%}"]) + " |")
    if sweep is not None:
        line = "sweep: {trials_per_hour:.0f} trials/h, in turn {trials_per_hour_in_turn:.0f}; {ratio:.2f}x"
        print(f"\n{line.format(**sweep)}")


if __name__ == "__main__":
    main()
