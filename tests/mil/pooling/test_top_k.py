"""Top-k pooling: values worked by hand, its neighbours max and mean, ties, and a share of bags in chunks."""

import pytest
import torch
from torch import Tensor

from milcore.config import TrainConfig
from milcore.errors import InputError
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.bags.segments import Segments
from milcore.mil.model import make_model
from milcore.mil.pooling.pooling import POOLINGS
from milcore.mil.pooling.protocol import Pooling, PoolingShape, Summary
from tests.mil.pooling.test_pooling import SETTINGS, part_of
from tests.mil.pooling.test_streaming import WHOLE, WIDTH, assert_alike, chunks_of, learn

FLOAT = torch.float64
# probabilities 0.5, 0.8, 0.2, 0.8
LOGIT = torch.logit(torch.tensor([[0.5], [0.8], [0.2], [0.8]], dtype=FLOAT))


def top(k: float, name: str = "topk") -> Pooling:
    return POOLINGS[name](PoolingShape(1, 1, 1, 1, **(SETTINGS | {"topk_instances": k})))


def summary_of(pooling: Pooling, logit: Tensor, segments: Segments) -> Summary:
    return pooling.lift(logit[:, :0], pooling.instance_values(logit), segments)


def theta(pooling: Pooling, logit: Tensor, lengths: list[int]) -> list[float]:
    summary = summary_of(pooling, logit, Segments.whole(lengths))
    return pooling.instance_log_prob(pooling.finish(summary)).exp()[:, 1, 0].tolist()


@pytest.mark.parametrize(
    ("k", "lengths", "expected"),
    [
        (2, [4], [0.8]),
        (3, [4], [0.7]),
        (9, [4], [0.575]),  # all, where there are fewer
        (2, [1, 3], [0.5, 0.8]),
        (0.5, [4], [0.8]),
        (0.6, [4], [0.7]),  # 2.4 rounded up
        (0.1, [4], [0.8]),  # at least one
        (0.34, [1, 3], [0.5, 0.8]),  # a share of each bag of its own: 1 and 2
    ],
)
def test_the_mean_probability_of_the_k_largest_logits_by_hand(
    k: float, lengths: list[int], expected: list[float]
) -> None:
    assert theta(top(k), LOGIT, lengths) == pytest.approx(expected)


def test_one_is_max_and_all_are_the_mean() -> None:
    logit, lengths = torch.randn(20, 1, dtype=FLOAT), [7, 13]
    assert theta(top(1), logit, lengths) == pytest.approx(theta(top(1, "max"), logit, lengths))
    assert theta(top(0.999), logit, lengths) == pytest.approx(theta(top(1, "mean"), logit, lengths))


def test_a_share_that_is_a_whole_number_of_instances_is_not_rounded_up() -> None:
    """0.1 times 30 is 3.0000000000000004 in floating point."""
    logit = torch.logit(torch.linspace(0.01, 0.3, 30, dtype=FLOAT))[:, None]
    assert theta(top(0.1), logit, [30]) == pytest.approx([0.29])


def test_of_equal_logits_the_earlier_instance_counts_in_whatever_order_parts_merge() -> None:
    logit = torch.tensor([[1.0], [2.0], [1.0], [1.0]], dtype=FLOAT, requires_grad=True)
    pooling, whole = top(2), Segments.whole([4])
    parts = [summary_of(pooling, logit[row], part_of(whole, row)) for row in map(slice, range(4), range(1, 5))]
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        first, *rest = (parts[k] for k in order)
        merged = first
        for part in rest:
            merged = pooling.merge(merged, part)
        assert sorted(merged[1].flatten().tolist()) == [0, 1]
        (gradient,) = torch.autograd.grad(pooling.finish(merged)[0, 1], logit, retain_graph=True)
        assert (gradient != 0).flatten().tolist() == [True, True, False, False]
    summary = summary_of(pooling, logit, whole)
    assert pooling.weights(logit[:, :0], logit, summary, whole).flatten().tolist() == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("k", [0.3, 7])
def test_a_share_of_bags_in_recomputed_chunks_learns_what_whole_bags_do(k: float, classes: int) -> None:
    """Only the instances that count are lifted again, but the share is that of all."""
    generator = torch.Generator().manual_seed(0)
    bags = [Bag(str(n), "", n % 2, torch.randn(n, WIDTH, generator=generator)) for n in (3, 130, 1, 64)]
    config = TrainConfig(pooling="topk", level="instance", hidden=24, topk_instances=k)
    batch = pack(bags, range(4))
    whole = learn(make_model(config, WIDTH, classes), batch, WHOLE)
    assert_alike(learn(make_model(config, WIDTH, classes), batch, chunks_of(7, recomputed=True)), whole)


@pytest.mark.parametrize("pooling", ["topk", "max"])
def test_random_subsets_of_bags_in_recomputed_chunks_learn_what_whole_subsets_do(pooling: str) -> None:
    """Positions have gaps there."""
    generator = torch.Generator().manual_seed(0)
    bags = [Bag(str(n), "", n % 2, torch.randn(n, WIDTH, generator=generator)) for n in (130, 64, 5)]
    config = TrainConfig(pooling=pooling, level="instance", hidden=24)
    batch = pack(bags, range(3)).subsample(40, seed=1, epoch=2)
    whole = learn(make_model(config, WIDTH, 2), batch, WHOLE)
    assert_alike(learn(make_model(config, WIDTH, 2), batch, chunks_of(7, recomputed=True)), whole)


def test_a_fraction_above_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"topk_instances: expected a count or a share, got 1.5; allowed: 1, 2, …, or"):
        TrainConfig(topk_instances=1.5)
