"""Sums over segments against a loop over bags, and how long bags are cut into pieces."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milcore.mil.bags.segments import ROWS_PER_PIECE, Segments, segment_max, segment_sum, weighted_segment_sum

LENGTHS = st.lists(st.integers(1, 3 * ROWS_PER_PIECE), min_size=1, max_size=40)


@given(lengths=LENGTHS, heads=st.integers(1, 3), seed=st.integers(0, 99))
def test_sums_and_maxima_equal_those_of_a_loop_over_bags(lengths: list[int], heads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    segments, rows = Segments.whole(lengths), sum(lengths)
    values = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(rows, heads, generator=generator, dtype=torch.float64)
    bags = list(zip(values.split(lengths), weights.split(lengths), strict=True))
    torch.testing.assert_close(segment_sum(values, segments), torch.stack([v.sum(0) for v, _ in bags]))
    torch.testing.assert_close(segment_max(values, segments), torch.stack([v.amax(0) for v, _ in bags]))
    torch.testing.assert_close(
        weighted_segment_sum(weights, values, segments), torch.stack([w.t() @ v for v, w in bags])
    )


@pytest.mark.parametrize("lengths", [[4, 1, 2], [2] * 40])
def test_gradients_of_the_sums_are_those_of_finite_differences(lengths: list[int]) -> None:
    """With few bags and with many."""
    segments, rows = Segments.whole(lengths), sum(lengths)
    values = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: segment_sum(v, segments), (values,))
    assert torch.autograd.gradcheck(lambda w, v: weighted_segment_sum(w, v, segments), (weights, values))


def test_long_bags_are_cut_into_pieces_that_stay_within_their_bag() -> None:
    segments = Segments.whole([ROWS_PER_PIECE + 1, 2, 2 * ROWS_PER_PIECE])
    assert segments.piece_bag.tolist() == [0, 0, 1, 2, 2]
    assert segments.piece_start.tolist() == [0, 64, 65, 67, 131]


def test_bags_and_places_by_hand() -> None:
    segments = Segments.whole([2, 3])
    assert segments.bag.tolist() == [0, 0, 1, 1, 1]
    assert segments.position.tolist() == [0, 1, 0, 1, 2]
    each = segments.each_row()
    assert (each.bags, each.bag.tolist(), each.position.tolist()) == (5, [0, 1, 2, 3, 4], [0, 1, 0, 1, 2])
