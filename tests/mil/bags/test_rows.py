"""Rows read by blocks: the same rows, each block once in either direction, few in memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milcore.mil.bags.rows import BlockRows, ChainedRows, RowSlice

DATA = torch.arange(23 * 2).reshape(23, 2)


@given(cuts=st.lists(st.integers(0, 22), min_size=1, max_size=6), size=st.integers(1, 23), block=st.integers(1, 25))
def test_any_slices_in_any_order_are_those_of_the_whole(cuts: list[int], size: int, block: int) -> None:
    rows = BlockRows(lambda start, stop: DATA[start:stop], 23, block)
    chained = ChainedRows([RowSlice(DATA, 0, 9), RowSlice(rows, 9, 10), RowSlice(DATA, 10, 23)])
    assert len(rows) == len(chained) == 23
    for start in cuts:
        assert torch.equal(rows[start : start + size], DATA[start : start + size])
        assert torch.equal(chained[start : start + size], DATA[start : start + size])


@pytest.mark.parametrize("backwards", [False, True])
def test_a_walk_reads_every_block_once(backwards: bool) -> None:
    read: list[int] = []

    def reader(start: int, stop: int) -> torch.Tensor:
        read.append(start // 5)
        return DATA[start:stop]

    rows = BlockRows(reader, 23, 5)
    starts = range(0, 23, 2)
    if backwards:
        rows._last_start = 23
    for start in reversed(starts) if backwards else starts:
        assert torch.equal(rows[start : start + 2], DATA[start : start + 2])
    assert sorted(read) == [0, 1, 2, 3, 4]
    assert len(rows._blocks) <= 3


@pytest.mark.parametrize(
    ("length", "expected"), [(4, [(0, 4)]), (8, [(0, 5), (5, 8)]), (23, [(0, 5), (5, 10), (10, 23)])]
)
def test_what_a_look_at_the_first_row_has_read_is_not_read_again(length: int, expected: list[tuple[int, int]]) -> None:
    read: list[tuple[int, int]] = []

    def reader(start: int, stop: int) -> torch.Tensor:
        read.append((start, stop))
        return DATA[start:stop]

    rows = BlockRows(reader, length, 5)
    assert torch.equal(rows[:1], DATA[:1])
    for _ in range(2):
        assert torch.equal(rows[:length], DATA[:length])
    assert read[: len(expected)] == expected


def test_an_error_of_the_store_reaches_the_reader() -> None:
    def reader(start: int, stop: int) -> torch.Tensor:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        BlockRows(reader, 3, 1)[0:1]
