"""Generalised-mean pooling: by hand, between mean and max, and beside torch's own powers."""

import math

import pytest
import torch

from milcore.mil.bags.segments import Segments
from tests.mil.pooling.test_pooling import FLOAT, make


def pool(keys: torch.Tensor, lengths: list[int], exponent: float) -> torch.Tensor:
    pooling = make("gem", width=keys.shape[1])
    with torch.no_grad():
        pooling.exponent.fill_(math.log(math.expm1((exponent - 1.0) * math.log(2.0) / 2.0)))
    return pooling.finish(pooling.lift(keys[:, :0], keys, Segments.whole(lengths)))


def test_its_exponent_is_three_at_first_and_never_below_one() -> None:
    pooling = make("gem")
    assert pooling.power().item() == pytest.approx(3.0)
    with torch.no_grad():
        pooling.exponent.fill_(-1e4)
    assert pooling.power().item() == 1.0


def test_it_is_the_root_of_the_mean_of_powers_by_hand() -> None:
    """p = 3 of 1 and 3: (28 / 2)^(1/3); a value below 0 counts as 1e-6."""
    keys = torch.tensor([[1.0, 2.0], [3.0, -5.0]], dtype=FLOAT)
    assert pool(keys, [2], 3.0)[0].tolist() == pytest.approx([14.0 ** (1 / 3), 4.0 ** (1 / 3)])


def test_it_goes_from_the_mean_to_the_maximum() -> None:
    keys = torch.rand(9, 4, dtype=FLOAT)
    torch.testing.assert_close(pool(keys, [9], 1.0 + 1e-9)[0], keys.mean(0), atol=1e-7, rtol=0)
    torch.testing.assert_close(pool(keys, [9], 1e3)[0], keys.amax(0), atol=1e-2, rtol=0)


def test_values_and_gradients_are_those_of_torch_s_powers() -> None:
    keys, plain = (torch.rand(12, 5, generator=torch.Generator().manual_seed(1), dtype=FLOAT) for _ in range(2))
    pooling, exponent = make("gem"), torch.tensor(3.0, dtype=FLOAT, requires_grad=True)
    pooled = pooling.finish(pooling.lift(keys[:, :0], keys.requires_grad_(), Segments.whole([5, 7])))
    bags = plain.requires_grad_().split([5, 7])
    expected = torch.stack([bag.clamp_min(1e-6).pow(exponent).mean(0).pow(1 / exponent) for bag in bags])
    torch.testing.assert_close(pooled, expected, atol=1e-9, rtol=1e-9)
    (pooled**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(keys.grad, plain.grad, atol=1e-9, rtol=1e-9)
    # dp/du at u = 0 is 2 sigmoid(0) / log 2 = 1 / log 2
    assert pooling.exponent.grad.item() == pytest.approx(exponent.grad.item() / math.log(2.0), rel=1e-9)
