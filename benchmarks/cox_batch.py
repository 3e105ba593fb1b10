"""Batch size of Cox's partial likelihood: test concordance by batch size and learning rate.

All are trained for as many epochs, so that larger batches make fewer steps. Bags of features whose hazard grows with
the share of instances of one kind. Run: ``python -m benchmarks.cox_batch``.
"""

import statistics

import numpy as np

from milcore.config import TrainConfig
from milcore.mil.bags.bags import Bags
from milcore.mil.inference import predict_bags
from milcore.mil.model import MILModel
from milcore.training.fit import fit
from milcore.training.survival import concordance

SIZES = (8, 16, 32, 64, "all")
LEARNING_RATES = (2e-4, 1e-3, 5e-3, 2e-2)
# mean time to censoring: a third of the patients is censored, or four in five
CENSORING = (1.5, 0.2)
SEEDS = (0, 1, 2)
TRAIN, VAL, TEST, WIDTH = 280, 60, 400, 32


def cohort(censoring: float, seed: int) -> tuple[Bags, np.ndarray, np.ndarray]:
    """Bags of 20 to 60 instances; the log hazard is the standardised share of shifted ones."""
    random = np.random.default_rng(seed)
    count = TRAIN + VAL + TEST
    share = random.beta(1.0, 4.0, count)
    arrays = []
    for k in range(count):
        array = random.normal(size=(int(random.integers(20, 60)), WIDTH)).astype(np.float32)
        array[random.random(len(array)) < share[k], :2] += 2.0
        arrays.append(array)
    hazard = np.exp((share - share.mean()) / share.std())
    event_time, censored = random.exponential(1.0 / hazard), random.exponential(censoring, count)
    times, events = np.minimum(event_time, censored) + 1e-6, (event_time <= censored).astype(int)
    splits = ["train"] * TRAIN + ["val"] * VAL + ["test"] * TEST
    return Bags.from_arrays(arrays, times=times, events=events, splits=splits), times, events


def measure(censoring: float, size: int | str, learning_rate: float, seed: int) -> tuple[float, float]:
    """Concordance on the validation and on the test bags."""
    bags, times, events = cohort(censoring, seed)
    config = TrainConfig(
        target="survival_cox", time="t", event="e", hidden=32, attention_hidden=16, batch_size=size, seed=seed,
        epochs=40, learning_rate=learning_rate,
    )  # fmt: skip
    model = fit(bags, config=config)
    return tuple(_concordance(model, bags, times, events, split) for split in ("val", "test"))


def _concordance(model: MILModel, bags: Bags, times: np.ndarray, events: np.ndarray, split: str) -> float:
    indices = bags.split(split)
    risk = np.array([prediction.probability[0] for prediction in predict_bags(model, bags, indices).values()])
    return concordance(times[indices], events[indices], risk)


def main() -> None:
    """Print a table for each share of censoring, the rate of highest mean validation concordance marked."""
    for censoring in CENSORING:
        events = statistics.mean(float(cohort(censoring, seed)[2].mean()) for seed in SEEDS)
        print(f"\n{events:.0%} of the patients have an event.\n")
        print(f"| bags in a step | {' | '.join(f'{rate:g}' for rate in LEARNING_RATES)} |")
        print("|---" * (1 + len(LEARNING_RATES)) + "|")
        for size in SIZES:
            rows = [[measure(censoring, size, rate, seed) for seed in SEEDS] for rate in LEARNING_RATES]
            val, test = ([statistics.mean(row[k] for row in of_rate) for of_rate in rows] for k in (0, 1))
            best = val.index(max(val))
            cells = [f"**{value:.3f}**" if k == best else f"{value:.3f}" for k, value in enumerate(test)]
            print(f"| {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
