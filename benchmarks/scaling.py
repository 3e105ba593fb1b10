"""Speed of training and of sweeps by number of Ray workers.

``python -m benchmarks.scaling [training] [nodes] [reports] [sweep] [--json] [--bags N] [--instances N] [--epochs N]``

Every worker computes on one thread (``OMP_NUM_THREADS=1``), whatever their number, on the same bags of random features
(n, 1024) f2 of unequal length and the same global batch of 8, gated attention with 512 and 256 hidden units, fp32.

- ``training``: ``fit`` in this process, without Ray; two such processes side by side, which is what the machine gives
  when nobody waits for anybody; then 1 and 2 workers under Ray Train.
- ``nodes``: 2 workers on two nodes of one CPU each, raylets of this machine started by ``ray start``, and a head
  without any CPU.
- ``reports``: bags so small that an epoch is next to nothing, in this process and on 1 and 2 workers: what Ray adds.
- ``sweep``: eight equal trials two at a time, one thread each, against them one after another in one process, on one
  thread and on all of them.

Medians over the epochs after the first, from the run's own history: bags per second of the training pass, and the share
of time in which workers waited for instances. Efficiency is bags per second against so many times those of the first
row. Start is the time from the command to the end of the first epoch, less the median time between epochs.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milcore.cluster.launch import train_with, tune_with
from milcore.cohort.manifest import Manifest, Slide
from milcore.config import LaunchConfig, SplitConfig, TrainConfig, TuneConfig
from milcore.runtime import storage
from milcore.runtime.limits import cpus
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from milcore.training.run import prepare_run
from milcore.training.sweep import prepare_sweep

WIDTH = 1024
BATCH = 8
SMALL_INSTANCES, SMALL_EPOCHS = 20, 60
TRIALS, TRIAL_EPOCHS = 8, 3
Row = dict[str, Any]


def write_store(uri: str, bags: int, instances: int) -> str:
    """Write slides of random features; every other one is positive.

    A slide has half to one and a half times ``instances``.
    """
    store, generator = PatchStore(uri), np.random.default_rng(0)
    slides = tuple(Slide(f"s{k}", f"s{k}", k % 2, f"p{k}", "", None, "train", None) for k in range(bags))
    slides += tuple(Slide(f"v{k}", f"v{k}", k % 2, f"q{k}", "", None, "val", None) for k in range(2))
    store.write_manifest(Manifest(slides, ("0", "1")))
    for slide in slides:
        length = int(generator.integers(instances // 2, instances * 3 // 2))
        with store.writer(SlideRecord(slide.slide_id, patches=length), None, "none", 90):
            pass  # a slide without pixels
        features = generator.standard_normal((length, WIDTH), np.float32).astype(np.float16)
        store.slide(slide.slide_id).write_features("f", features, {})
    return uri


def training_config(epochs: int) -> TrainConfig:
    """Training settings of every run; early stopping never ends one."""
    return TrainConfig(features="f", epochs=epochs, patience=epochs, batch_size=BATCH, checkpoint_every=epochs)


def measure(store: str, run: str, config: TrainConfig, launch: LaunchConfig) -> Row:
    """One run, timed from outside and by its own history."""
    prepare_run(store, run, config, SplitConfig())
    started = time.time()
    train_with(run, launch)
    return speed_of(run, started)


def speed_of(run: str, started: float) -> Row:
    """Speed of a finished run, from its history and event file."""
    ended = epoch_ends(run)
    between = statistics.median(np.diff(ended))
    return {
        "bags_per_sec": statistics.median(figures(run, "bags_per_sec")[1:]),
        "waiting": statistics.median(figures(run, "waiting")[1:]),
        "epoch_s": between,
        "start_s": ended[0] - started - between,
    }


def measure_side_by_side(store: str, folder: str, config: TrainConfig) -> Row:
    """Two independent processes with a run each; their speeds added."""
    runs = [f"{folder}/beside{k}" for k in range(2)]
    for run in runs:
        prepare_run(store, run, config, SplitConfig())
    started = time.time()
    commands = [[sys.executable, "-m", "milcore.cluster", "train", run, "--workers", "0"] for run in runs]
    for process in [subprocess.Popen(command) for command in commands]:
        if process.wait() != 0:
            raise RuntimeError(f"a run ended with {process.returncode}")
    first, second = (speed_of(run, started) for run in runs)
    return {
        **{name: (first[name] + second[name]) / 2 for name in first},
        "bags_per_sec": first["bags_per_sec"] + second["bags_per_sec"],
    }


def epoch_ends(run: str) -> list[float]:
    """Time at which each epoch was reported, by the run's event file."""
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
    """Address of a Ray cluster of ``count`` nodes with one CPU each.

    Each is a raylet of this machine; the head has no CPU.
    """
    ray = str(Path(sys.executable).with_name("ray"))
    quiet = ["--dashboard-agent-listen-port=0", "--metrics-export-port=0", "--disable-usage-stats"]
    begin = [ray, "start", "--block", "--node-ip-address=127.0.0.1", *quiet]
    gcs, dashboard, client = free_ports(3)
    head = [*begin, "--head", f"--port={gcs}", "--num-cpus=0", "--dashboard-host=127.0.0.1"]
    head += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    surroundings = os.environ | {"PATH": f"{Path(ray).parent}{os.pathsep}{os.environ['PATH']}"}
    with contextlib.ExitStack() as stack:
        for command in [head] + [[*begin, f"--address=127.0.0.1:{gcs}", "--num-cpus=1"]] * count:
            log = stack.enter_context(tempfile.NamedTemporaryFile())
            node = subprocess.Popen(
                command, env=surroundings, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )
            stack.callback(node.wait)
            stack.callback(os.killpg, node.pid, signal.SIGKILL)
            while b"Ray runtime started" not in Path(log.name).read_bytes():
                if node.poll() is not None:
                    raise RuntimeError(f"no node: {Path(log.name).read_text()[-2000:]}")
                time.sleep(0.1)
        yield f"127.0.0.1:{gcs}"


def free_ports(count: int) -> list[int]:
    """Loopback ports free now and outside the range of Ray's workers (10002 to 19999)."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def training(folder: str, given: argparse.Namespace) -> list[Row]:
    """On one machine."""
    store = write_store(f"{folder}/large", given.bags, given.instances)
    config = training_config(given.epochs)
    rows = [{"where": "this process", "workers": 1, **measure(store, f"{folder}/alone", config, LaunchConfig())}]
    rows.append({"where": "two processes, apart", "workers": 2, **measure_side_by_side(store, folder, config)})
    for workers in (1, 2):
        row = measure(store, f"{folder}/ray{workers}", config, LaunchConfig(workers=workers))
        rows.append({"where": "Ray", "workers": workers, **row})
    return with_efficiency(rows)


def on_nodes(folder: str, given: argparse.Namespace) -> list[Row]:
    """On nodes of one CPU."""
    store = write_store(f"{folder}/nodes", given.bags, given.instances)
    rows = []
    with nodes(2) as address:
        for workers in (1, 2):
            launch = LaunchConfig(workers=workers, ray_address=address)
            row = measure(store, f"{folder}/nodes{workers}", training_config(given.epochs), launch)
            rows.append({"where": "Ray, nodes of 1 CPU", "workers": workers, **row})
    return with_efficiency(rows)


def with_efficiency(rows: list[Row]) -> list[Row]:
    """The rows with bags per second against so many times those of the first."""
    one = rows[0]["bags_per_sec"] / rows[0]["workers"]
    return [{**row, "efficiency": row["bags_per_sec"] / (row["workers"] * one)} for row in rows]


def reports(folder: str, given: argparse.Namespace) -> list[Row]:
    """Epochs that are next to nothing."""
    store, config = write_store(f"{folder}/small", given.bags, SMALL_INSTANCES), training_config(SMALL_EPOCHS)
    rows = [{"where": "this process", "workers": 1, **measure(store, f"{folder}/s0", config, LaunchConfig())}]
    for workers in (1, 2):
        row = measure(store, f"{folder}/s{workers}", config, LaunchConfig(workers=workers))
        rows.append({"where": "Ray", "workers": workers, **row, "added_s": row["epoch_s"] - rows[0]["epoch_s"]})
    return rows


def sweep(folder: str, given: argparse.Namespace) -> list[Row]:
    """Trials per hour; they are alike, so that none is stopped early."""
    store, train = write_store(f"{folder}/sweep", given.bags, given.instances), training_config(TRIAL_EPOCHS)
    rate = train.learning_rate
    config = TuneConfig(
        poolings=("gated_attention",), trials=TRIALS, learning_rate_min=rate, learning_rate_max=rate, train=train
    )
    out = f"{folder}/out"
    prepare_sweep(store, out, config, SplitConfig())
    together = seconds(lambda: tune_with(out, LaunchConfig(workers=2)))
    epochs = [row["epochs"] for row in storage.read_table(f"{out}/trials.parquet").to_pylist()]
    if epochs != [TRIAL_EPOCHS] * TRIALS:
        raise RuntimeError(f"trials were to be of {TRIAL_EPOCHS} epochs each; they were of {epochs}")
    rows = [{"how": "2 at a time on Ray, its start and end included", "trials_per_hour": 3600 * TRIALS / together}]
    for threads in (1, cpus()):
        torch.set_num_threads(threads)
        run = f"{folder}/turn{threads}"
        prepare_run(store, run, train, SplitConfig())
        each = seconds(lambda run=run: train_with(run, LaunchConfig()))
        rows.append({"how": f"one after another, {threads} threads", "trials_per_hour": 3600 / each})
    torch.set_num_threads(1)
    return [{**row, "ratio": rows[0]["trials_per_hour"] / row["trials_per_hour"]} for row in rows]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


PARTS: dict[str, Callable[[str, argparse.Namespace], list[Row]]] = {
    "training": training,
    "nodes": on_nodes,
    "reports": reports,
    "sweep": sweep,
}
FORMATS = {
    "bags_per_sec": ("bags/s", "{:.2f}"),
    "efficiency": ("efficiency", "{:.2f}"),
    "epoch_s": ("epoch, s", "{:.3f}"),
    "added_s": ("added by Ray, s", "{:.3f}"),
    "start_s": ("start, s", "{:.1f}"),
    "waiting": ("waiting", "{:.1%}"),
    "trials_per_hour": ("trials/h", "{:.0f}"),
    "ratio": ("the first row against it", "{:.2f}"),
}


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    columns = list({name: None for row in rows for name in row})
    heads = [FORMATS[name][0] if name in FORMATS else name for name in columns]
    lines = [heads, ["---:" if name in FORMATS else "---" for name in columns]]
    for row in rows:
        shown = [FORMATS[name][1] if name in FORMATS else "{}" for name in columns]
        lines.append([form.format(row[name]) if name in row else "" for form, name in zip(shown, columns, strict=True)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print one object instead of tables")
    parser.add_argument("--bags", type=int, default=32, help="training bags (default: 32)")
    parser.add_argument("--instances", type=int, default=4000, help="of a bag on average (default: 4000)")
    parser.add_argument("--epochs", type=int, default=6, help="of the runs of training and nodes (default: 6)")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}; allowed: {', '.join(PARTS)}")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which Ray starts from here
    torch.set_num_threads(1)
    tables: dict[str, list[Row]] = {}
    for part in given.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            tables[part] = PARTS[part](folder, given)
        if not given.json:
            print(f"\n{part}\n\n{table(tables[part])}", flush=True)
    if given.json:
        about = {"torch": torch.__version__, "python": platform.python_version(), "cpus": cpus()}
        print(json.dumps({**tables, "about": about | vars(given)}, indent=1))


if __name__ == "__main__":
    main()
