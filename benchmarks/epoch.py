"""Time of an epoch of ``train_model`` from a store against its bare training steps.

``python -m benchmarks.epoch [--json] [--cases bc] [--rounds N] [--where local s3-1 s3-20] [--dtypes fp32 bf16]
[--bags kept ahead read] [--batches N]``

The store holds four (``--batches``) batches of the case's bags as features (n, 1024) f2. ``s3-N`` is a bucket of
SeaweedFS on this machine behind a proxy that holds every request for N ms. An epoch is what ``train_model`` does
between two reports: bags read, packed and dealt, steps, validation (there are no validation bags). Once with the bags
``kept`` in memory after the first epoch, once ``ahead``, with a cache of five of the largest bags, so that every epoch
reads the others again, and once ``read``, with a cache of nothing, so that bags are read while they are computed on
(the operating system may hold the files in memory). A bare step is that of ``benchmarks.pooling``, method packed, on
features that lie in memory in the row's precision; the bare epoch is as many of them. Medians over the epochs after the
first; ``waiting`` is the share of time that training itself tells.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.pooling import ATTENTION, CASES, DTYPES, HIDDEN, KEPT_MB, WIDTH, make_batch, make_step, seconds
from benchmarks.scale.__main__ import start_storage
from milcore.config import TrainConfig
from milcore.mil.bags.load import load_bags
from milcore.runtime.malloc import keep_freed_memory
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.loop import train_model
from tests.proxy import ProxyProcess

BYTES_PER_INSTANCE = 2 * WIDTH
READINGS = ("kept", "ahead", "read")


class Clock(LocalContext):
    """Notes when epochs end."""

    def __init__(self) -> None:
        super().__init__(None, torch.device("cpu"))
        self.ends: list[float] = []
        self.waiting: list[float] = []

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Note the time."""
        super().report(epoch, metrics, checkpoint)
        self.ends.append(time.perf_counter())
        self.waiting.append(metrics["train_waiting"])


def write_store(uri: str, lengths: list[int]) -> pa.Table:
    """Slides that consist of their features; returns their split."""
    generator = np.random.default_rng(0)
    for k, length in enumerate(lengths):
        with PatchStore(uri).writer(SlideRecord(f"s{k}", patches=length), None, "none", 90):
            pass  # a slide without pixels
        features = generator.standard_normal((length, WIDTH), np.float32).astype(np.float16)
        PatchStore(uri).slide(f"s{k}").write_features("f", features, {})
    ids = [f"s{k}" for k in range(len(lengths))]
    labels = [k % 2 for k in range(len(lengths))]
    return pa.table({"slide_id": ids, "patient_id": ids, "label": labels, "split": ["train"] * len(ids)})


def epoch_row(uri: str, splits: pa.Table, config: TrainConfig) -> dict[str, float]:
    """Seconds and share of waiting, medians over the epochs after the first."""
    clock = Clock()
    train_model(config, load_bags(uri, config, splits), clock)
    return {"epoch_s": statistics.median(np.diff(clock.ends)), "waiting": statistics.median(clock.waiting[1:])}


def caches_mb(lengths: Sequence[int]) -> dict[str, float]:
    """Sizes of the cache by what they lead to."""
    return dict(zip(READINGS, (8000.0, 5 * BYTES_PER_INSTANCE * max(lengths) / 1e6, 0.001), strict=True))


def measure(
    case: str, dtype: str, given: argparse.Namespace, proxy: ProxyProcess | None
) -> Iterator[dict[str, object]]:
    """The rows of a case in one precision."""
    rounds = given.rounds
    batch = make_batch(case, DTYPES[dtype])
    step = make_step("packed", batch, DTYPES[dtype], 0.0)
    step()
    bare = given.batches * statistics.median(seconds(step) for _ in range(rounds))
    config = TrainConfig(
        features="f",
        hidden=HIDDEN,
        attention_hidden=ATTENTION,
        dropout=0.0,
        epochs=rounds + 1,
        patience=rounds + 1,
        batch_size=CASES[case].bags,
        precision=dtype,
        activation_mb=KEPT_MB,
    )
    splits_of: dict[str, pa.Table] = {}
    with tempfile.TemporaryDirectory() as folder:
        for place in given.where:
            uri = f"{folder}/store" if place == "local" else f"s3://milcore/{case}-{dtype}"
            hold(proxy, 0.0)
            if uri not in splits_of:
                splits_of[uri] = write_store(uri, batch.lengths * given.batches)
            hold(proxy, 0.0 if place == "local" else float(place.removeprefix("s3-")))
            sizes = caches_mb(batch.lengths)
            for reading in given.bags:
                row = epoch_row(uri, splits_of[uri], config.model_copy(update={"cache_mb": sizes[reading]}))
                names = {"case": case, "dtype": dtype, "where": place, "bags": reading}
                yield {**names, **row, "bare_s": bare, "ratio": row["epoch_s"] / bare, "load": os.getloadavg()[0]}


def hold(proxy: ProxyProcess | None, ms: float) -> None:
    """Hold each request for so long from now on."""
    if proxy is not None:
        proxy.hold(ms / 1000)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of a table")
    parser.add_argument("--cases", default="bc", help="which cases, any of abcd (default: bc)")
    parser.add_argument("--rounds", type=int, default=5, help="counted epochs and steps (default: 5)")
    parser.add_argument("--batches", type=int, default=4, help="batches of an epoch (default: 4)")
    parser.add_argument("--where", nargs="+", default=["local"], help="local, or s3-N with N ms added (default: local)")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES, help="precisions (default: all)")
    parser.add_argument("--bags", nargs="+", default=list(READINGS), choices=READINGS, help="caches (default: all)")
    given = parser.parse_args()
    keep_freed_memory()
    with ExitStack() as stack:
        proxy = None
        if given.where != ["local"]:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            proxy = start_storage(work, stack)
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
        rows = [row for case in given.cases for dtype in given.dtypes for row in measure(case, dtype, given, proxy)]
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print("| case | precision | where | bags | epoch, s | waiting | bare steps, s | ratio | load |")
    print("|---|---|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        names = "| {case} | {dtype} | {where} | {bags} |".format(**row)
        print(names + " {epoch_s:.2f} | {waiting:.0%} | {bare_s:.2f} | {ratio:.2f} | {load:.0f} |".format(**row))


if __name__ == "__main__":
    main()
