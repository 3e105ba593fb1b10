"""One batch, many ways: packed, in chunks, recomputed, read from a store and split over two processes learn alike."""

import itertools
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from milcore.config import POOLING_LEVELS, TrainConfig, without_unread
from milcore.mil.bags.batch import Bag, BagBatch, pack
from milcore.mil.bags.rows import BlockRows
from milcore.mil.dropout import Dropout
from milcore.mil.model import BagLosses, MILModel, make_model
from milcore.mil.pooling.streaming import ChunkPlan
from tests.mil.places import placed

WIDTH = 11
LENGTHS = (3, 130, 1, 64, 200, 5)
SHORT = (3, 7, 1, 5)
DROPOUT = Dropout(seed=1, epoch=2, rate=0.5)
CPU = torch.device("cpu")
WHOLE = ChunkPlan(10_000, oversized=False, device=CPU)


def model_config(pooling: str, level: str, **more: object) -> TrainConfig:
    settings = {
        "pooling": pooling,
        "level": level,
        "hidden": 24,
        "attention_hidden": 8,
        "transmil_landmarks": 8,
        **more,
    }
    return TrainConfig(**without_unread(settings))


CASES = {
    f"{pooling}-{level}-{heads}": (model_config(pooling, level, attention_heads=heads), classes)
    for pooling, levels in POOLING_LEVELS.items()
    for level in levels
    for heads, classes in (("shared", 2), ("per_class", 3))
}
CASES["conv"] = (model_config("gated_attention", "embedding", features=None, encoder="conv", augment=True), 2)
CASES["dtfd-maxmins"] = (model_config("dtfd", "embedding", dtfd_distillation="maxmins"), 3)
CASES["mlp"] = (model_config("gated_attention", "embedding", encoder="mlp"), 2)
CASES["topk-share"] = (model_config("topk", "instance", topk_instances=0.3), 2)
CASES["conv-max"] = (model_config("max", "embedding", features=None, encoder="conv"), 2)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[TrainConfig, int]:
    return CASES[request.param]


def bags_for(config: TrainConfig, lengths: tuple[int, ...] = LENGTHS) -> list[Bag]:
    generator = torch.Generator().manual_seed(0)
    if config.features is None:
        shapes = [(min(length, 9), 12, 12, 3) for length in lengths]
        rows = [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for shape in shapes]
    else:
        rows = [torch.randn(length, WIDTH, generator=generator) for length in lengths]
    return [placed(Bag(str(k), str(k), k % 2, instances)) for k, instances in enumerate(rows)]


def chunks_of(rows: int, *, recomputed: bool) -> ChunkPlan:
    return ChunkPlan(rows, recomputed, CPU)


def model_of(config: TrainConfig, classes: int) -> MILModel:
    return make_model(config, WIDTH, classes)


def learn(model: MILModel | DistributedDataParallel, batch: BagBatch, plan: ChunkPlan) -> tuple[Tensor, Tensor]:
    """Training losses of the bags and the gradient of their sum, as one vector.

    Args:
        model: or the ``BagLosses`` of one, over ranks.
        batch: of bags.
        plan: of its chunks.
    """
    of_bags = BagLosses(model) if isinstance(model, MILModel) else model
    losses = of_bags(batch, DROPOUT, lambda log_prob: -log_prob.gather(1, batch.labels[:, None])[:, 0], plan)
    losses.sum().backward()
    return losses.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def assert_alike(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(a[0], b[0], atol=1e-5, rtol=0)
    assert (a[1] - b[1]).norm() <= 1e-5 * b[1].norm()


def test_chunks_and_recomputed_chunks_learn_what_one_packed_batch_does(case: tuple[TrainConfig, int]) -> None:
    """Dropout on; chunks end inside bags and at their ends, and a bag goes on over several chunks."""
    for lengths, rows, recomputed in ((LENGTHS, 67, False), (LENGTHS, 67, True), (SHORT, 3, True)):
        batch = pack(bags_for(case[0], lengths), range(len(lengths)))
        whole = learn(model_of(*case), batch, WHOLE)
        assert_alike(learn(model_of(*case), batch, chunks_of(rows, recomputed=recomputed)), whole)


def test_a_packed_batch_learns_the_sum_of_its_bags(case: tuple[TrainConfig, int]) -> None:
    bags, model = bags_for(case[0]), model_of(*case)
    alone = [learn(model, pack([bag], [k]), WHOLE) for k, bag in enumerate(bags)]  # gradients add up in the model
    together = learn(model_of(*case), pack(bags, range(len(bags))), WHOLE)
    assert_alike((torch.cat([losses for losses, _ in alone]), alone[-1][1]), together)


def test_rows_still_to_be_read_learn_what_rows_in_memory_do(case: tuple[TrainConfig, int]) -> None:
    data = bags_for(case[0])[4].instances
    unread = BlockRows(lambda start, stop: data[start:stop], len(data), 4)
    expected = learn(model_of(*case), pack([placed(Bag("x", "x", 1, data))], [5]), WHOLE)
    in_chunks = learn(model_of(*case), pack([placed(Bag("x", "x", 1, unread))], [5]), chunks_of(3, recomputed=True))
    assert_alike(in_chunks, expected)


def split_bags(config: TrainConfig) -> list[Bag]:
    return bags_for(config, (130, 7))


def _learn_as_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    outcomes = {}
    for (name, case), recomputed in itertools.product(CASES.items(), (False, True)):
        replica = DistributedDataParallel(BagLosses(model_of(*case)))
        part = pack(split_bags(case[0]), range(2)).rank_slice(rank, 2)
        outcomes[f"{name} {recomputed}"] = learn(replica, part, chunks_of(23, recomputed=recomputed))
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes() -> list[dict[str, tuple[Tensor, Tensor]]]:
    """Losses and gradients of each of two processes that have half of every bag."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_learn_as_rank, (folder,), nprocs=2, start_method="spawn", join=True)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_bags_split_over_two_processes_learn_what_one_process_does(
    name: str, recomputed: bool, of_two_processes: list[dict[str, tuple[Tensor, Tensor]]]
) -> None:
    """Under DistributedDataParallel, whose mean over ranks must not halve the parts' gradients."""
    expected = learn(model_of(*CASES[name]), pack(split_bags(CASES[name][0]), range(2)), WHOLE)
    for outcomes in of_two_processes:
        assert_alike(outcomes[f"{name} {recomputed}"], expected)


def test_a_bag_of_fewer_instances_than_ranks_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="expected at least 3 instances to split over 3 ranks, got 2"):
        pack([Bag("x", "x", 1, torch.zeros(2, WIDTH))], [0]).rank_slice(0, 3)


def test_max_pooling_recomputes_only_the_instances_that_won() -> None:
    """At instance level a bag's gradient comes from one instance; the other 199 are not lifted again."""
    config = model_config("max", "instance")
    model = model_of(config, 2)
    rows_with_gradient: list[int] = []
    embedder = model.encoder.embedder

    def counting(dtype: torch.dtype, stored: torch.dtype, scale: float):
        embed = embedder(dtype, stored, scale)
        return lambda rows, mask: (
            rows_with_gradient.append(len(rows)) if torch.is_grad_enabled() else None,
            embed(rows, mask),
        )[1]

    model.encoder.embedder = counting
    learn(model, pack(bags_for(config)[4:5], [0]), chunks_of(7, recomputed=True))
    assert sum(rows_with_gradient) == 2  # in the forward pass that is thrown away and once more for its gradient


def test_the_budget_counts_what_the_backward_pass_keeps() -> None:
    """In fp32: 11 features, 24 of the embedding, two halves of the hidden layer of 8 each, and a score."""
    config = model_config("gated_attention", "embedding", dropout=0.0, activation_mb=1.0)
    model = make_model(config, WIDTH, classes=2)
    each = 1_000_000 / model.instance_budget(torch.zeros(1, WIDTH))
    assert 4 * (11 + 24 + 16) <= each <= 4 * (11 + 24 + 16) + 40
    assert model.chunk_plan(pack([Bag("x", "x", 1, torch.zeros(20_000, WIDTH))], [0])).oversized
    assert not model.chunk_plan(pack([Bag("x", "x", 1, torch.zeros(2_000, WIDTH))], [0])).oversized
