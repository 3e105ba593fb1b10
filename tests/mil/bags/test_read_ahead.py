"""Bags that are read ahead: the batches of reading one after another, in bounded memory, and errors."""

import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.bags.read_ahead import MOST_BAGS, MOST_GROUPS, BagSource, ReadAhead

ROW_BYTES = 8


def bags_of(lengths: Sequence[int], cache_bytes: int, read: list[str]) -> Bags:
    """Bags of two float32 features, whose reads are noted."""

    def open_rows(entry: BagEntry) -> torch.Tensor:
        read.append(entry.bag_id)
        return torch.full((entry.length, 2), float(entry.bag_id))

    return Bags(
        [BagEntry.of_slide(str(k), str(k), k % 2, "train", length) for k, length in enumerate(lengths)],
        open_rows,
        cache_bytes,
    )


def source_of(read: Callable[[int], None], size: int) -> BagSource:
    """Bags of one row, none of which is kept."""

    def read_bag(index: int) -> Bag:
        read(index)
        return Bag(str(index), str(index), 0, torch.full((1, 1), float(index)))

    return BagSource(lambda _: None, read_bag, lambda *_: None, lambda _: size)


def reading_threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith(("bags_", "batches_"))]


groups_of_six = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=12)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=6, max_size=6), groups=groups_of_six, cache_rows=st.integers(0, 100)
)
def test_batches_are_those_of_bags_read_one_after_another(
    lengths: list[int], groups: list[list[int]], cache_rows: int
) -> None:
    """The same bags end up in the cache, too."""
    ahead, alone = (bags_of(lengths, cache_rows * ROW_BYTES, []) for _ in range(2))
    for group, batch in zip(groups, ahead.batches(groups), strict=True):
        expected = pack([alone[index] for index in group], group)
        assert batch.lengths == expected.lengths
        for name in ("position", "labels", "keys"):
            assert torch.equal(getattr(batch, name), getattr(expected, name))
        assert torch.equal(batch.instances[:], expected.instances[:])
    kept = [[bags._cache.get(index) is not None for index in range(6)] for bags in (ahead, alone)]
    assert kept[0] == kept[1]


def test_a_bag_that_several_groups_need_is_read_once_while_it_is_in_work() -> None:
    read: list[str] = []
    assert len(list(bags_of([1, 1], 1000, read).batches([[0, 1], [0, 0], [1]]))) == 3
    assert sorted(read) == ["0", "0", "1"], "the first is opened once more, to learn how large an instance is"


def test_small_bags_are_read_many_at_a_time() -> None:
    together = threading.Barrier(16)

    def read(index: int) -> None:
        together.wait(timeout=60)

    batches = ReadAhead(source_of(read, 1), 100).batches([[k] for k in range(32)])
    assert [int(batch.keys) for batch in batches] == list(range(32))


@pytest.mark.parametrize(
    ("size", "most_bytes", "expected"), [(1, 1000, MOST_BAGS // 2), (10, 100, 10), (60, 100, 2), (500, 100, 2)]
)
def test_bytes_in_work_are_bounded(size: int, most_bytes: int, expected: int) -> None:
    """Within the bound, or the next group alone beside the one that is waited for; groups are of one bag."""
    begun: set[int] = set()
    batches = ReadAhead(source_of(begun.add, size), most_bytes).batches([[k] for k in range(200)])
    for number, _ in enumerate(batches):
        assert max(begun) < number + expected
    assert len(begun) == 200


def test_no_group_is_taken_far_ahead_where_all_bags_are_at_hand() -> None:
    taken: list[int] = []
    bags = bags_of([1], 1000, [])
    list(bags.batches([[0]]))
    batches = bags.batches(taken.append(0) or [0] for _ in range(1000))
    next(batches)
    batches.close()
    assert 2 <= len(taken) <= MOST_GROUPS + 1


def test_an_error_of_a_read_takes_the_place_of_its_batch() -> None:
    def read(index: int) -> None:
        if index == 2:
            raise OSError("gone")

    batches = ReadAhead(source_of(read, 1), 100).batches([[k] for k in range(9)])
    assert [int(next(batches).keys) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(batches)
    assert not reading_threads()


def test_reading_ends_with_the_batches_that_are_used() -> None:
    begun: set[int] = set()
    batches = ReadAhead(source_of(begun.add, 1), 1000).batches([[k] for k in range(1000)])
    next(batches)
    batches.close()
    assert len(begun) <= MOST_BAGS
    assert not reading_threads()
