"""Bags per second and latency of ``milcore serve`` beside a bare loop in torch, and under overload.

``python -m benchmarks.serving [--requests N] [--concurrency 8] [--instances 5000]``, some minutes

A bag is (5000, 1280) features, the model gated attention of the benchmarks' widths as training leaves it. *bare loop*:
its formula in ten lines of torch, bag after bag in this process, on all CPUs, before the service starts. *served*: N
requests with binary tensors by ``--concurrency`` clients, threads of this process, to a service on this machine with as
many places in its queue. *overload*: four times as many clients, each of which sends a request that is refused (429)
again after 0.1 s; seconds are of requests that were accepted, from their last sending. Clients and service share the
CPUs. The median of three rounds of the bare loop, before and after.
"""

import argparse
import http.client
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from benchmarks.pooling import ATTENTION, HIDDEN
from milcore.config import ImportConfig, SplitConfig, TrainConfig
from milcore.ingestion.imports.import_cohort import import_source
from milcore.mil.model import MILModel
from milcore.runtime import storage
from milcore.runtime.limits import cpus
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run
from tests.conftest import free_ports
from tests.serving.bodies import binary_request

WIDTH, BAGS_OF_TRAINING, OVERLOAD, PAUSE_S, ROUNDS = 1280, 12, 4, 0.1, 3
DTYPES = {"FP32": np.float32, "FP16": np.float16}
TRAIN = TrainConfig(features="imported", pooling="gated_attention", hidden=HIDDEN, attention_hidden=ATTENTION, epochs=1)


class Answers(NamedTuple):
    """Answers to requests.

    Args:
        seconds: of each that was accepted.
        refused: number of refusals.
        wall_s: from the first request to the last answer.
    """

    seconds: list[float]
    refused: int
    wall_s: float

    def row(self) -> str:
        """Requests per second, p50 and p99 in ms, refusals."""
        p50, p99 = 1000 * np.percentile(self.seconds, [50, 99])
        return f"{len(self.seconds) / self.wall_s:.2f} | {p50:.0f} | {p99:.0f} | {self.refused}"


def make_run(folder: Path) -> str:
    """A run of one epoch on small bags of that width."""
    generator = np.random.default_rng(0)
    rows = [
        {"slide_id": f"s{k}", "label": k % 2, "features": instance}
        for k in range(BAGS_OF_TRAINING)
        for instance in generator.normal(size=(4, WIDTH)).tolist()
    ]
    storage.write_table(str(folder / "bags.parquet"), pa.Table.from_pylist(rows))
    import_source(str(folder / "bags.parquet"), str(folder / "store"), ImportConfig(format="parquet"))
    run = str(folder / "run")
    prepare_run(str(folder / "store"), run, TRAIN, SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    return run


def bare_formula(model: MILModel) -> Callable[[np.ndarray], float]:
    """Probability of a bag by the model's weights, in plain torch."""
    weights = {name: value.detach() for name, value in model.state_dict().items()}

    def linear(values: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    @torch.no_grad()
    def probability(features: np.ndarray) -> float:
        x = (torch.from_numpy(features).float() - weights["encoder.mean"]) / weights["encoder.sd"]
        h = linear(x, "encoder.project").relu()
        gate = linear(h, "pooling.attention.gate").sigmoid()
        scores = linear(linear(h, "pooling.attention.content").tanh() * gate, "pooling.attention.score")
        return float(linear(scores.softmax(dim=0).t() @ h, "classifier").sigmoid())

    return probability


def bare_rate(probability: Callable[[np.ndarray], float], features: np.ndarray, bags: int) -> float:
    """Bags per second of a loop, after one that is not counted."""
    probability(features)
    start = time.perf_counter()
    for _ in range(bags):
        probability(features)
    return bags / (time.perf_counter() - start)


@contextmanager
def service(run: str, places: int) -> Iterator[int]:
    """Port of a service with so many places, for the length of the context."""
    (port,) = free_ports(1)
    limits = ["--max-ongoing-requests", str(places), "--max-queued-requests", "0"]
    command = [str(Path(sys.executable).with_name("milcore")), "serve", run, "--port", str(port), *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("serving "):
                break
        yield port
        process.send_signal(signal.SIGTERM)
        process.communicate()


def press(port: int, features: np.ndarray, requests: int, clients: int) -> Answers:
    """Answers to so many requests by so many clients."""
    body, headers = binary_request(features=features)

    def ask(_: int) -> tuple[float, int]:
        refused = 0
        while True:
            start = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request("POST", "/v2/models/run/infer", body, headers)
            answer = connection.getresponse()
            answer.read()
            connection.close()
            if answer.status == 200:
                return time.perf_counter() - start, refused
            if answer.status != 429:
                raise RuntimeError(f"expected 200 or 429, got {answer.status}")
            refused += 1
            time.sleep(PAUSE_S)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))  # not counted
        start = time.perf_counter()
        seconds, refusals = zip(*pool.map(ask, range(requests)), strict=True)
        return Answers(list(seconds), sum(refusals), time.perf_counter() - start)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--instances", type=int, default=5000)
    given = parser.parse_args()
    torch.set_num_threads(cpus())
    bag = np.random.default_rng(1).normal(size=(given.instances, WIDTH))
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder))
        probability = bare_formula(Run(run).models()[0])
        before = [bare_rate(probability, bag.astype(np.float32), 20) for _ in range(ROUNDS)]
        print("| work | type | requests/s | p50, ms | p99, ms | refused |\n|---|---|---:|---:|---:|---:|")
        with service(run, given.concurrency) as port:
            for name, dtype in DTYPES.items():
                for work, clients in (("served", given.concurrency), ("overload", OVERLOAD * given.concurrency)):
                    answers = press(port, bag.astype(dtype), given.requests, clients)
                    print(f"| {work}, {clients} clients | {name} | {answers.row()} |", flush=True)
        after = [bare_rate(probability, bag.astype(np.float32), 20) for _ in range(ROUNDS)]
        print(f"| bare loop | FP32 | {statistics.median(before + after):.2f} | | | |")
        print(f"bare loop, bags/s: before {before}, after {after}")


if __name__ == "__main__":
    main()
