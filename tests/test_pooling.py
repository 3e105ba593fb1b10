"""The contract every pooling of the table keeps, at both levels, and values worked by hand."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from milcore.config import PoolingName
from milcore.pooling import POOLINGS, Pooling, Segments, make_pooling

WIDTH = 5


def segments_of(lengths: list[int]) -> Segments:
    count = torch.tensor(lengths)
    return Segments(
        torch.repeat_interleave(torch.arange(len(lengths)), count),
        torch.cat([torch.arange(n) for n in lengths]),
        len(lengths),
    )


def pooled(pooling: Pooling, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    return pooling.finish(pooling.lift(keys, values, segments_of(lengths)))


@pytest.fixture(params=sorted(POOLINGS))
def pooling(request: pytest.FixtureRequest) -> Pooling:
    torch.manual_seed(1)
    return make_pooling(request.param, WIDTH, 4).double()


@pytest.fixture(params=["embedding", "instance"])
def values_of(request: pytest.FixtureRequest, pooling: Pooling):
    """From keys to the values that the level pools."""
    if request.param == "embedding":
        return lambda keys: keys
    return lambda keys: pooling.instance_values(keys[:, :1])


def test_config_names_are_the_table_s_keys() -> None:
    assert set(get_args(PoolingName)) == set(POOLINGS)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    name=st.sampled_from(sorted(POOLINGS)),
)
def test_packed_equals_each_bag_alone_and_any_order(lengths: list[int], seed: int, name: str) -> None:
    torch.manual_seed(seed)
    pooling = make_pooling(name, WIDTH, 4).double()
    keys = torch.randn(sum(lengths), WIDTH, dtype=torch.float64)
    packed = pooled(pooling, keys, keys, lengths)
    for row, bag in zip(packed, keys.split(lengths), strict=True):
        shuffled = bag[torch.randperm(len(bag))]
        torch.testing.assert_close(pooled(pooling, bag, bag, [len(bag)])[0], row)
        torch.testing.assert_close(pooled(pooling, shuffled, shuffled, [len(bag)])[0], row)


def test_summaries_of_parts_merge_to_the_summary_of_the_whole(pooling: Pooling, values_of) -> None:
    keys = torch.randn(9, WIDTH, dtype=torch.float64)
    values, whole = values_of(keys), segments_of([9])
    parts = [
        pooling.lift(keys[rows], values[rows], Segments(whole.bag[rows], whole.position[rows], 1))
        for rows in (slice(0, 2), slice(2, 3), slice(3, 9))
    ]
    left = pooling.merge(pooling.merge(parts[0], parts[1]), parts[2])
    right = pooling.merge(parts[0], pooling.merge(parts[2], parts[1]))
    expected = pooling.finish(pooling.lift(keys, values, whole))
    torch.testing.assert_close(pooling.finish(left), expected)
    torch.testing.assert_close(pooling.finish(right), expected)


def test_a_bag_with_no_instance_in_one_part_is_the_other_part(pooling: Pooling, values_of) -> None:
    keys = torch.randn(3, WIDTH, dtype=torch.float64)
    values = values_of(keys)
    position = torch.arange(3)
    first = pooling.lift(keys, values, Segments(torch.zeros(3, dtype=torch.int64), position, 2))
    second = pooling.lift(keys, values, Segments(torch.ones(3, dtype=torch.int64), position, 2))
    merged = pooling.finish(pooling.merge(first, second))
    alone = pooling.finish(pooling.lift(keys, values, segments_of([3])))
    torch.testing.assert_close(merged, alone.expand(2, -1))


def test_a_bag_of_one_pools_to_its_instance(pooling: Pooling, values_of) -> None:
    keys = torch.randn(1, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(pooled(pooling, keys, values_of(keys), [1]), values_of(keys))


def test_weights_sum_to_one_in_every_bag(pooling: Pooling, values_of) -> None:
    keys = torch.randn(7, WIDTH, dtype=torch.float64)
    segments = segments_of([2, 4, 1])
    weights = pooling.weights(keys, pooling.lift(keys, values_of(keys), segments), segments)
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, segments.bag, weights)
    torch.testing.assert_close(sums, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_instance_level_stays_finite_with_gradients_at_extreme_logits(pooling: Pooling, extreme: float) -> None:
    keys = torch.full((3, WIDTH), extreme, dtype=torch.float64, requires_grad=True)
    log_prob = pooling.instance_log_prob(pooled(pooling, keys, pooling.instance_values(keys[:, :1]), [3]))
    assert torch.isfinite(log_prob).all()
    assert log_prob.min() >= math.log(1e-7) - 1e-9
    log_prob.sum().backward()
    assert torch.isfinite(keys.grad).all()


def test_gradients_are_those_of_finite_differences(pooling: Pooling, values_of) -> None:
    keys = torch.randn(6, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: pooled(pooling, k, values_of(k), [2, 1, 3]), (keys,))


def test_mean_and_max_by_hand() -> None:
    keys = torch.tensor([[1.0, 5.0], [3.0, 1.0], [7.0, 7.0]])
    assert pooled(make_pooling("mean", 2, 1), keys, keys, [2, 1]).tolist() == [[2.0, 3.0], [7.0, 7.0]]
    assert pooled(make_pooling("max", 2, 1), keys, keys, [2, 1]).tolist() == [[3.0, 5.0], [7.0, 7.0]]


def test_the_first_of_equal_values_wins_the_maximum_and_its_gradient() -> None:
    keys = torch.tensor([[2.0], [4.0], [4.0]], requires_grad=True)
    pooled(make_pooling("max", 1, 1), keys, keys, [3]).sum().backward()
    assert keys.grad.tolist() == [[0.0], [1.0], [0.0]]


def test_instance_level_probabilities_by_hand() -> None:
    """Two instances with p = 0.8 and p = 0.5: the mean is 0.65, the maximum 0.8."""
    logit = torch.tensor([[math.log(4.0)], [0.0]], dtype=torch.float64)
    for name, theta in (("mean", 0.65), ("max", 0.8)):
        pooling = make_pooling(name, 1, 1)
        log_prob = pooling.instance_log_prob(pooled(pooling, logit, pooling.instance_values(logit), [2]))
        assert log_prob.exp().tolist()[0] == pytest.approx([1 - theta, theta])


@pytest.mark.parametrize(("name", "gate"), [("attention", 1.0), ("gated_attention", 0.5)])
def test_attention_weights_by_hand(name: str, gate: float) -> None:
    """V = 1, w = 1, U = 0: the scores of h = 0 and h = 1 are 0 and tanh(1) (halved by the gate's sigmoid(0))."""
    pooling = make_pooling(name, 1, 1).double()
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.fill_(0.0)
        pooling.attention.content.weight.fill_(1.0)
        pooling.attention.score.weight.fill_(1.0)
    keys = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    expected = math.exp(gate * math.tanh(1.0)) / (1.0 + math.exp(gate * math.tanh(1.0)))
    assert pooled(pooling, keys, keys, [2]).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["attention", "gated_attention"])
def test_the_score_has_no_bias(name: str) -> None:
    """A bias before the softmax has an exactly zero gradient that Adam would amplify."""
    assert make_pooling(name, 3, 2).attention.score.bias is None
