"""A device's numbers against fp64 on the CPU.

Every pooling at each of its levels takes STEPS of plain gradient descent with dropout, once packed and once in chunks
that are recomputed; the larger deviation of the two is shown. A deviation of losses is relative, one of weights is a
share of their change. fp32 is without TF32. Then equal bits of two runs with torch's deterministic algorithms.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.row import Row, at_most
from benchmarks.gpu.settings import BOUNDS
from milcore.config import POOLING_LEVELS, TrainConfig, without_unread
from milcore.mil.bags.batch import Bag, BagBatch, pack
from milcore.mil.dropout import Dropout
from milcore.mil.model import MILModel, make_model
from milcore.mil.pooling.streaming import ChunkPlan

PART = "correctness"
WIDTH, LENGTHS, GRID = 48, (1, 7, 300, 64, 129), 12
CHUNK_ROWS = 37
STEPS, RATE, DROPOUT = 5, 0.05, 0.2
CPU = torch.device("cpu")


class Learned(NamedTuple):
    """Losses of the steps, and all weights before and after, in fp64 on the CPU."""

    losses: Tensor
    before: Tensor
    after: Tensor


def correctness(device: torch.device) -> Iterator[Row]:
    """Rows of every pooling and of its repeated runs."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for config in poolings():
        expected = learn(config.model_copy(update={"precision": "fp64"}), CPU, streamed=False)
        for precision in BOUNDS:
            given = config.model_copy(update={"precision": precision})
            yield deviation_row(
                PART,
                f"{config.pooling}, {config.level}, {precision}",
                [learn(given, device, streamed=streamed) for streamed in (False, True)],
                expected,
                precision,
            )
    for config in poolings():
        yield repeated_row(config, device)


def poolings() -> Iterator[TrainConfig]:
    """Each pooling at each of its levels."""
    for pooling, levels in POOLING_LEVELS.items():
        for level in levels:
            settings = {"pooling": pooling, "level": level, "hidden": 32, "attention_hidden": 16, "dropout": DROPOUT}
            yield TrainConfig(**without_unread(settings))


def learn(config: TrainConfig, device: torch.device, *, streamed: bool) -> Learned:
    """Steps of gradient descent over one batch of ragged bags."""
    batch = ragged_batch(torch.float64 if config.precision == "fp64" else torch.float32)
    model = make_model(config, WIDTH, classes=2)
    before = weights_of(model)
    model.to(device)
    rows = CHUNK_ROWS if streamed else len(batch.instances)
    plan, labels = ChunkPlan(rows, streamed, device), batch.labels[:, None].to(device)
    losses = []
    for step in range(STEPS):
        model.zero_grad()
        loss = -model(batch, Dropout(0, step, DROPOUT), plan).gather(1, labels).mean()
        torch.autograd.backward(loss)
        losses.append(loss.detach().double().cpu())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=RATE)
    return Learned(torch.stack(losses), before, weights_of(model))


def ragged_batch(dtype: torch.dtype) -> BagBatch:
    """Bags of normal features, the same numbers in every precision."""
    generator = torch.Generator().manual_seed(0)
    bags = [
        Bag(str(k), str(k), k % 2, torch.randn(length, WIDTH, generator=generator).to(dtype), _grid(length))
        for k, length in enumerate(LENGTHS)
    ]
    return pack(bags, range(len(bags)))


def _grid(instances: int) -> Tensor:
    """Places of the instances of a slide, row by row."""
    number = torch.arange(instances, dtype=torch.float64)
    return torch.stack([torch.zeros_like(number), number // GRID, number % GRID], dim=1)


def weights_of(model: MILModel) -> Tensor:
    """All parameters one after another."""
    return torch.cat([parameter.detach().double().cpu().flatten() for parameter in model.parameters()])


def deviation_row(part: str, case: str, seen: list[Learned], expected: Learned, precision: str) -> Row:
    """The largest deviations beside their bounds."""
    losses = max(((each.losses - expected.losses).abs() / expected.losses.abs()).max().item() for each in seen)
    change = (expected.after - expected.before).norm()
    weights = max(((each.after - expected.after).norm() / change).item() for each in seen)
    of_losses, of_weights = BOUNDS[precision]
    return at_most(part, case, [("losses", losses, of_losses), ("weights", weights, of_weights)])


def repeated_row(config: TrainConfig, device: torch.device) -> Row:
    """Two runs with torch's deterministic algorithms: equal bits, or the operator that has none."""
    case = f"{config.pooling}, {config.level}: two runs equal to the bit"
    torch.use_deterministic_algorithms(mode=True)
    try:
        one, other = (learn(config, device, streamed=True) for _ in range(2))
    except RuntimeError as error:
        return Row(PART, case, "no", "yes", reached=False, note=str(error).splitlines()[0])
    finally:
        torch.use_deterministic_algorithms(mode=False)
    equal = torch.equal(one.after, other.after) and torch.equal(one.losses, other.losses)
    return Row(PART, case, "yes" if equal else "no", "yes", equal)
