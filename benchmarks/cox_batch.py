"""Batch size of Cox's partial likelihood: test concordance of models trained by batches of several sizes.

Bags of features whose hazard grows with the number of instances of one kind; a third is censored. Run:
``python -m benchmarks.cox_batch``.
"""

import statistics
import time

import numpy as np

from milcore.config import TrainConfig
from milcore.mil.bags.bags import Bags
from milcore.mil.inference import predict_bags
from milcore.training.fit import fit
from milcore.training.survival import concordance

SIZES = (4, 8, 16, 32, 64, 128, "all")
SEEDS = (0, 1, 2)
TRAIN, VAL, TEST, WIDTH = 280, 60, 400, 32


def cohort(seed: int) -> tuple[Bags, np.ndarray, np.ndarray]:
    """Bags of 20 to 60 instances; the log hazard is 3 times the standardised share of shifted ones."""
    random = np.random.default_rng(seed)
    count = TRAIN + VAL + TEST
    share = random.beta(1.0, 4.0, count)
    arrays = []
    for k in range(count):
        array = random.normal(size=(int(random.integers(20, 60)), WIDTH)).astype(np.float32)
        array[random.random(len(array)) < share[k], :2] += 2.0
        arrays.append(array)
    hazard = np.exp((share - share.mean()) / share.std())
    event_time, censoring = random.exponential(1.0 / hazard), random.exponential(1.5, count)
    times, events = np.minimum(event_time, censoring) + 1e-6, (event_time <= censoring).astype(int)
    splits = ["train"] * TRAIN + ["val"] * VAL + ["test"] * TEST
    return Bags.from_arrays(arrays, times=times, events=events, splits=splits), times, events


def measure(size: int | str, seed: int) -> tuple[float, float]:
    """Concordance on the test bags, and seconds of training."""
    bags, times, events = cohort(seed)
    config = TrainConfig(
        target="survival_cox", time="t", event="e", hidden=32, attention_hidden=16, batch_size=size, seed=seed,
        epochs=60, patience=15, dropout=0.25, learning_rate=1e-3,
    )  # fmt: skip
    start = time.perf_counter()
    model = fit(bags, config=config)
    seconds, test = time.perf_counter() - start, bags.split("test")
    risk = np.array([prediction.probability[0] for prediction in predict_bags(model, bags, test).values()])
    return concordance(times[test], events[test], risk), seconds


def main() -> None:
    """Print a row for each size."""
    print("| bags in a step | test Harrell's C, mean of 3 seeds | smallest to largest | s of training |")
    print("|---|---|---|---|")
    for size in SIZES:
        values, seconds = zip(*(measure(size, seed) for seed in SEEDS), strict=True)
        ends = f"{min(values):.3f} to {max(values):.3f}"
        print(f"| {size} | {statistics.mean(values):.3f} | {ends} | {statistics.mean(seconds):.1f} |", flush=True)


if __name__ == "__main__":
    main()
