"""Dropout keyed by (seed, epoch, bag, instance): its rate, its scale and what it does not depend on."""

import pytest
import torch

from milcore.mil.bags.segments import Segments
from milcore.mil.dropout import Dropout, drop

KEYS = torch.tensor([3, 8])
LENGTHS = [400, 300]


def kept(dropout: Dropout, keys: torch.Tensor = KEYS, lengths: list[int] = LENGTHS, hidden: int = 96) -> torch.Tensor:
    mask = dropout.draw(keys, Segments.whole(lengths), hidden)
    return mask.apply_(torch.ones(sum(lengths), hidden))


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_entries_are_dropped_at_the_rate_and_the_mean_is_kept(rate: float) -> None:
    """67,200 draws: four standard errors of the rate are below 0.008."""
    dropout = Dropout(1, 2, rate)
    values = kept(dropout)
    assert set(values.unique().tolist()) == {0.0, 1.0}
    assert 1.0 - values.mean().item() == pytest.approx(dropout.level / 256, abs=0.008)
    assert dropout.level / 256 == pytest.approx(rate, abs=1 / 512)
    assert dropout.scale == pytest.approx(1.0 / (1.0 - dropout.level / 256))


def test_columns_and_instances_draw_independently() -> None:
    values = kept(Dropout(1, 2, 0.5)) - 0.5
    for axis in (values, values.t()):
        correlation = torch.corrcoef(axis[:64])
        correlation.fill_diagonal_(0.0)
        assert correlation.abs().max() < 6.0 / axis.shape[1] ** 0.5


def test_a_bag_draws_alike_in_any_batch_and_otherwise_in_another_epoch_seed_or_bag() -> None:
    together, alone = kept(Dropout(1, 2, 0.5)), kept(Dropout(1, 2, 0.5), KEYS[1:], LENGTHS[1:])
    assert torch.equal(together[400:], alone)
    for other in (Dropout(1, 3, 0.5), Dropout(2, 2, 0.5)):
        assert (kept(other) != together).float().mean() > 0.4
    assert (together[:300] != together[400:]).float().mean() > 0.4


def test_a_chunk_of_a_bag_draws_what_the_bag_does() -> None:
    whole = Segments.whole([100])
    chunk = Segments.whole([60])._replace(position=whole.position[40:])
    first = Dropout(1, 2, 0.5).draw(KEYS[:1], whole, 16)
    second = Dropout(1, 2, 0.5).draw(KEYS[:1], chunk, 16)
    assert torch.equal(first.numbers[40:], second.numbers)


def test_nothing_is_drawn_at_rate_zero() -> None:
    assert Dropout(1, 2, 0.0).draw(KEYS, Segments.whole(LENGTHS), 16) is None


def test_the_gradient_passes_where_the_value_does() -> None:
    values = torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    mask = Dropout(1, 2, 0.5).draw(KEYS[:1], Segments.whole([5]), 16)
    assert torch.autograd.gradcheck(lambda v: drop(v, mask), (values,))
