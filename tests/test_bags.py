"""Packing, dealing and batching of ragged bags."""

import itertools
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milcore.bags import Bag, BagEntry, Bags, deal, global_batches, micro_batches, pack


def bag_of(length: int, label: int = 0) -> Bag:
    return Bag("slide", "patient", label, torch.arange(length * 2.0).reshape(length, 2))


def test_packed_bags_stand_one_after_another() -> None:
    batch = pack([bag_of(2, 1), bag_of(3)], [7, 8])
    assert batch.segments.bag.tolist() == [0, 0, 1, 1, 1]
    assert batch.segments.position.tolist() == [0, 1, 0, 1, 2]
    assert batch.labels.tolist() == [1, 0]
    assert batch.keys.tolist() == [7, 8]
    assert batch.instances[:, 0].tolist() == [0, 2, 0, 2, 4]


def test_an_empty_bag_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'slide' has 0 instances"):
        pack([bag_of(0)], [0])


def test_global_batches_hold_every_bag_once_and_change_with_the_epoch() -> None:
    first, second = (global_batches(range(10), 4, seed=3, epoch=epoch) for epoch in (0, 1))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(itertools.chain(*first)) == list(range(10))
    assert first != second
    assert first == global_batches(range(10), 4, seed=3, epoch=0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 5))
def test_every_bag_is_dealt_once_and_no_hand_is_overfull(lengths: list[int], world_size: int) -> None:
    hands = deal(range(len(lengths)), lengths, world_size)
    assert sorted(itertools.chain(*hands)) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(lengths)


def test_micro_batches_keep_the_instance_budget_and_a_large_bag_stands_alone() -> None:
    assert micro_batches([0, 1, 2, 3], [3, 4, 20, 5], 8) == [[0, 1], [2], [3]]


def test_bags_are_read_once_while_they_fit_and_again_when_they_do_not() -> None:
    read: list[str] = []

    def reader(entry: BagEntry) -> torch.Tensor:
        read.append(entry.slide_id)
        return torch.zeros(entry.length, 2)

    entries = [BagEntry(name, name, 0, "train", 4) for name in "ab"]
    bags = Bags(entries, reader, cache_bytes=4 * 2 * 4)
    for _ in range(2):
        assert [len(batch.labels) for batch in bags.batches([[0], [1]])] == [1, 1]
    assert read == ["a", "b", "b"]


def test_batches_leave_no_reading_thread_behind() -> None:
    bags = Bags([BagEntry("a", "a", 0, "train", 1)], lambda _: torch.zeros(1, 1))
    before = threading.active_count()
    list(bags.batches([[0], [0]]))
    assert threading.active_count() == before
