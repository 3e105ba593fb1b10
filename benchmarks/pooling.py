"""Speed of training steps of gated attention MIL on frozen features, beside peers.

``python -m benchmarks.pooling [--json] [--cases abcd] [--rounds N] [--dropout RATE] [--dtypes fp32,bf16]``

A step is forward, backward and optimizer (AdamW) over one global batch of 1024-wide features that lie in memory in the
row's precision; embeddings of 512, attention of 256. Methods:

- loop: a model call and an optimizer step per bag, what CLAM and AttentionDeepMIL do;
- loop_accumulated: a model call per bag, one optimizer step per batch;
- torchmil: its own ABMIL over the batch, padded beforehand (padding is not timed);
- packed: ``milcore``'s model, activations kept;
- streamed: the same in 16 MB of activations, recomputed chunk by chunk.

Every method takes one step a round, in turn, after a round that is not counted; the median over rounds is shown. bf16
is autocast for the peers and ``precision="bf16"`` here. GFLOP/s counts three times the multiplications and additions
of the forward pass for every method, whatever it computes, so recomputing and padding earn nothing. The peak is the
better of two large matrix products, measured beside each case. Memory is what the resident set grows by in a process
of its own, from before the first step to its highest. All processes let glibc keep freed memory, the peers too.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.memory import resident_mb
from milcore.config import TrainConfig
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.dropout import Dropout
from milcore.mil.model import make_model
from milcore.runtime.malloc import keep_freed_memory

WIDTH, HIDDEN, ATTENTION = 1024, 512, 256


class BagsOf(NamedTuple):
    """So many bags of ``low`` to ``high`` instances."""

    bags: int
    low: int
    high: int


CASES = {
    "a": BagsOf(256, 5, 30),
    "b": BagsOf(16, 500, 3_000),
    "c": BagsOf(4, 10_000, 10_000),
    "d": BagsOf(1, 100_000, 100_000),
}
METHODS = ("loop", "loop_accumulated", "torchmil", "packed", "streamed")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KEPT_MB, STREAMED_MB = 1_000_000, 16


class Batch(NamedTuple):
    """One global batch in memory of a device."""

    features: Tensor
    lengths: list[int]
    labels: Tensor

    @property
    def flops(self) -> int:
        """Three times those of the forward pass, which recomputation and padding do not add to."""
        width = self.features.shape[1]
        return sum(self.lengths) * 3 * 2 * (width * HIDDEN + HIDDEN * 2 * ATTENTION + ATTENTION + HIDDEN)


def make_batch(sizes: BagsOf, dtype: torch.dtype, width: int = WIDTH) -> Batch:
    """Bags of these sizes on the CPU."""
    lengths = np.random.default_rng(0).integers(sizes.low, sizes.high + 1, sizes.bags).tolist()
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(sum(lengths), width, dtype=dtype)
    for block in features.split(8192):
        block.copy_(torch.randn(block.shape, generator=generator))
    return Batch(features, lengths, torch.arange(len(lengths)) % 2)


class OneBag(nn.Module):
    """Gated attention MIL of one bag, as in Ilse et al.'s code (2018)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Dropout(dropout))
        self.content = nn.Sequential(nn.Linear(HIDDEN, ATTENTION), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(HIDDEN, ATTENTION), nn.Sigmoid())
        self.score = nn.Linear(ATTENTION, 1)
        self.classifier = nn.Linear(HIDDEN, 1)

    def forward(self, bag: Tensor) -> Tensor:
        """The logit of a bag (instance, feature)."""
        embeddings = self.encoder(bag)
        weights = torch.softmax(self.score(self.content(embeddings) * self.gate(embeddings)).t(), dim=1)
        logit: Tensor = self.classifier(weights @ embeddings)
        return logit[0]


def loop_step(batch: Batch, dtype: torch.dtype, dropout: float, *, accumulated: bool) -> Callable[[], None]:
    """A call per bag; a step per bag, or one per batch."""
    device = batch.features.device
    model = OneBag(batch.features.shape[1], dropout).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    bags = batch.features.split(batch.lengths)
    share = 1.0 / len(bags) if accumulated else 1.0

    def step() -> None:
        optimizer.zero_grad()
        for bag, label in zip(bags, batch.labels, strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                logit = model(bag)
            loss = nn.functional.binary_cross_entropy_with_logits(logit.float(), label[None].float())
            (share * loss).backward()
            if not accumulated:
                optimizer.step()
                optimizer.zero_grad()
        if accumulated:
            optimizer.step()

    return step


def torchmil_step(batch: Batch, dtype: torch.dtype, dropout: float) -> Callable[[], None]:
    """Torchmil's ABMIL on the padded batch."""
    from torchmil.models import ABMIL  # noqa: PLC0415 - a peer, needed by this method only

    device, width = batch.features.device, batch.features.shape[1]
    encoder = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Dropout(dropout))
    model = ABMIL(in_shape=(width,), att_dim=ATTENTION, gated=True, feat_ext=encoder).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    padded = nn.utils.rnn.pad_sequence(list(batch.features.split(batch.lengths)), batch_first=True)
    mask = (torch.arange(padded.shape[1]) < torch.tensor(batch.lengths)[:, None]).float().to(device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logit = model(padded, mask)
        nn.functional.binary_cross_entropy_with_logits(logit.float(), batch.labels.float()).backward()
        optimizer.step()

    return step


def milcore_step(
    batch: Batch, dtype: torch.dtype, dropout: float, activation_mb: float, device: torch.device | None = None
) -> Callable[[], None]:
    """This project's model, keeping or recomputing activations by its memory budget.

    Args:
        batch: of bags.
        dtype: fp32 or bf16.
        dropout: on embeddings.
        activation_mb: memory budget.
        device: of the model; None: where the bags lie.
    """
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    config = TrainConfig(
        hidden=HIDDEN,
        attention_hidden=ATTENTION,
        dropout=dropout,
        precision=precision,
        activation_mb=activation_mb,
    )
    device = device or batch.features.device
    model = make_model(config, batch.features.shape[1], classes=2).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    bags = [
        Bag(str(k), str(k), int(label), features)
        for k, (label, features) in enumerate(zip(batch.labels, batch.features.split(batch.lengths), strict=True))
    ]
    # the bags lie one after another in memory, for every method alike
    packed = dataclasses.replace(pack(bags, range(len(bags))), instances=batch.features)
    labels = packed.labels[:, None].to(device)

    def step() -> None:
        optimizer.zero_grad()
        log_prob = model(packed, Dropout(0, 0, dropout))
        (-log_prob.gather(1, labels).mean()).backward()
        optimizer.step()

    return step


def make_step(method: str, batch: Batch, dtype: torch.dtype, dropout: float) -> Callable[[], None]:
    """The step of a method over a batch."""
    if method == "torchmil":
        return torchmil_step(batch, dtype, dropout)
    if method in {"packed", "streamed"}:
        return milcore_step(batch, dtype, dropout, KEPT_MB if method == "packed" else STREAMED_MB)
    return loop_step(batch, dtype, dropout, accumulated=method == "loop_accumulated")


def seconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def matrix_peak_gflops(dtype: torch.dtype) -> float:
    """Best of repeated products of 4,096 x 4,096 and of a chunk's shape."""
    best = 0.0
    for rows, inner, columns in ((4096, 4096, 4096), (8192, WIDTH, HIDDEN)):
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        times = [seconds(lambda left=left, right=right: torch.mm(left, right)) for _ in range(8)]
        best = max(best, 2 * rows * inner * columns / min(times) / 1e9)
    return best


def peak_mb(case: str, method: str, dtype: str, dropout: float) -> float:
    """Growth of the resident set over two steps, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.pooling",
        "--memory-of",
        case,
        method,
        dtype,
        "--dropout",
        str(dropout),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(case: str, method: str, dtype: str, dropout: float) -> float:
    """MB by which the resident set grows over two steps here."""
    batch = make_batch(CASES[case], DTYPES[dtype])  # held here, so that no step uses its memory again
    step = make_step(method, batch, DTYPES[dtype], dropout)
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set is now the present one
    before = resident_mb("VmRSS")
    step()
    step()
    return resident_mb("VmHWM") - before


def measure(case: str, dtype: str, rounds: int, dropout: float) -> Iterator[dict[str, object]]:
    """The rows of a case in one precision."""
    batch = make_batch(CASES[case], DTYPES[dtype])
    steps = {method: make_step(method, batch, DTYPES[dtype], dropout) for method in METHODS}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(rounds + 1):
        for method, step in steps.items():
            taken = seconds(step)
            if turn:
                times[method].append(taken)
    peak = matrix_peak_gflops(DTYPES[dtype])
    for method in METHODS:
        median = statistics.median(times[method])
        gflops = batch.flops / median / 1e9
        yield {
            "case": case,
            "method": method,
            "dtype": dtype,
            "bags_per_s": len(batch.lengths) / median,
            "instances_per_s": sum(batch.lengths) / median,
            "gflops": gflops,
            "peak_gflops": peak,
            "share_of_peak": gflops / peak,
            "peak_mb": peak_mb(case, method, dtype, dropout),
            "rounds": rounds,
        }


def show(rows: list[dict[str, object]]) -> str:
    """The rows as a Markdown table."""
    head = "| case | method | precision | bags/s | instances/s | GFLOP/s | of peak | step memory, MB |"
    lines = [head, "|---|---|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {row['case']} | {row['method']} | {row['dtype']} | {row['bags_per_s']:,.1f} "
        f"| {row['instances_per_s']:,.0f} | {row['gflops']:,.0f} | {row['share_of_peak']:.0%} | {row['peak_mb']:,.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of a table")
    parser.add_argument("--cases", default="abcd", help="which cases, any of abcd (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="counted steps of each method (default: 7)")
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout on embeddings (default: 0)")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="which precisions (default: fp32,bf16)")
    parser.add_argument("--memory-of", nargs=3, metavar=("CASE", "METHOD", "DTYPE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    keep_freed_memory()
    if given.memory_of:
        print(measure_memory(*given.memory_of, given.dropout))
        return
    rows = [
        row
        for case in given.cases
        for dtype in given.dtypes.split(",")
        for row in measure(case, dtype, given.rounds, given.dropout)
    ]
    print(json.dumps(rows, indent=1) if given.json else show(rows))


if __name__ == "__main__":
    main()
