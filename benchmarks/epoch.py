"""Time of an epoch of ``train_model`` from a store against its bare training steps.

``python -m benchmarks.epoch [--json] [--cases bc] [--rounds N]``

The store holds four batches of the case's bags as features (n, 1024) f2. An epoch is what ``train_model`` does between
two reports: bags read, packed and dealt, steps, validation (there are no validation bags). Once with the bags kept in
memory after the first epoch, and once with a cache of nothing, so that every epoch reads the store again (which the
operating system may hold in memory). A bare step is that of ``benchmarks.pooling``, method packed, on features that lie
in memory in the row's precision; the bare epoch is four of them. Medians over the epochs after the first.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.pooling import ATTENTION, CASES, DTYPES, HIDDEN, KEPT_MB, WIDTH, make_batch, make_step, seconds
from milcore.config import TrainConfig
from milcore.mil.bags.load import load_bags
from milcore.runtime.malloc import keep_freed_memory
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.loop import train_model

BATCHES = 4


class Clock(LocalContext):
    """Notes when epochs end."""

    def __init__(self) -> None:
        super().__init__(None, torch.device("cpu"))
        self.ends: list[float] = []

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Note the time."""
        super().report(epoch, metrics, checkpoint)
        self.ends.append(time.perf_counter())


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


def epoch_seconds(uri: str, splits: pa.Table, config: TrainConfig) -> float:
    """Median over the epochs after the first."""
    clock = Clock()
    train_model(config, load_bags(uri, config, splits), clock)
    return statistics.median(np.diff(clock.ends))


def measure(case: str, dtype: str, rounds: int) -> Iterator[dict[str, object]]:
    """The rows of a case in one precision."""
    batch = make_batch(case, DTYPES[dtype])
    step = make_step("packed", batch, DTYPES[dtype], 0.0)
    step()
    bare = BATCHES * statistics.median(seconds(step) for _ in range(rounds))
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
    with tempfile.TemporaryDirectory() as folder:
        splits = write_store(folder, batch.lengths * BATCHES)
        for reading, cache_mb in (("kept", 8000.0), ("read", 0.001)):
            taken = epoch_seconds(folder, splits, config.model_copy(update={"cache_mb": cache_mb}))
            yield {
                "case": case,
                "dtype": dtype,
                "bags": reading,
                "epoch_s": taken,
                "bare_s": bare,
                "ratio": taken / bare,
            }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of a table")
    parser.add_argument("--cases", default="bc", help="which cases, any of abcd (default: bc)")
    parser.add_argument("--rounds", type=int, default=5, help="counted epochs and steps (default: 5)")
    given = parser.parse_args()
    keep_freed_memory()
    rows = [row for case in given.cases for dtype in DTYPES for row in measure(case, dtype, given.rounds)]
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print("| case | precision | bags | epoch, s | bare steps, s | ratio |\n|---|---|---|---:|---:|---:|")
    for row in rows:
        print("| {case} | {dtype} | {bags} | {epoch_s:.2f} | {bare_s:.2f} | {ratio:.2f} |".format(**row))


if __name__ == "__main__":
    main()
