"""Packing, dealing and batching of ragged bags."""

import gc
import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.bags.dealing import deal, global_batches, micro_batches
from milcore.mil.bags.rows import BlockRows


def bag_of(length: int, label: int = 0) -> Bag:
    return Bag("slide", "patient", label, torch.arange(length * 2.0).reshape(length, 2))


def test_packed_bags_stand_one_after_another() -> None:
    batch = pack([bag_of(2, 1), bag_of(3)], [7, 8])
    assert batch.lengths == (2, 3)
    assert batch.position.tolist() == [0, 1, 0, 1, 2]
    assert batch.labels.tolist() == [1, 0]
    assert batch.keys.tolist() == [7, 8]
    assert batch.instances[:][:, 0].tolist() == [0, 2, 0, 2, 4]


def test_a_chunk_knows_its_bags_and_the_places_of_its_rows() -> None:
    batch = pack([bag_of(2), bag_of(3), bag_of(1)], [7, 8, 9])
    assert batch.spans(4) == [(0, 4), (4, 6)]
    first, second = (batch.chunk(*span, torch.device("cpu")) for span in batch.spans(4))
    assert (first.first_bag, first.segments.bag.tolist()) == (0, [0, 0, 1, 1])
    assert (second.first_bag, second.segments.bag.tolist()) == (1, [0, 1])
    assert (first.segments.position.tolist(), second.segments.position.tolist()) == ([0, 1, 0, 1], [2, 0])
    assert second.bag_keys.tolist() == [8, 9]
    assert second.instances[:, 0].tolist() == [4, 0]


@given(st.lists(st.integers(3, 20), min_size=1, max_size=5), st.integers(1, 3))
def test_parts_of_all_ranks_hold_every_row_once_in_its_place(lengths: list[int], world_size: int) -> None:
    batch = pack([bag_of(length) for length in lengths], range(len(lengths)))
    parts = [batch.rank_slice(rank, world_size) for rank in range(world_size)]
    assert [sum(each) for each in zip(*(part.lengths for part in parts), strict=True)] == lengths
    for k in range(len(lengths)):
        places = [part.position.split(part.lengths)[k].tolist() for part in parts]
        assert list(itertools.chain(*places)) == list(range(lengths[k]))
        rows = [part.instances[:].split(part.lengths)[k] for part in parts]
        assert torch.equal(torch.cat(rows), bag_of(lengths[k]).instances)


def test_instances_are_drawn_by_bag_and_epoch_and_keep_their_places() -> None:
    batch = pack([bag_of(3), bag_of(40), bag_of(50)], [7, 8, 9])
    drawn, again, later = (batch.subsample(10, seed=1, epoch=epoch) for epoch in (0, 0, 1))
    assert drawn.lengths == (3, 10, 10)
    first, second, third = drawn.position.split(drawn.lengths)
    assert first.tolist() == [0, 1, 2]
    assert second.tolist() == sorted(set(second.tolist()))
    assert torch.equal(drawn.instances[:][:, 0], 2.0 * drawn.position)
    assert torch.equal(drawn.instances[5:20], drawn.instances[:][5:20])
    assert torch.equal(drawn.position, again.position)
    assert not torch.equal(drawn.position, later.position)
    alone = pack([bag_of(50)], [9]).subsample(10, seed=1, epoch=0)
    assert torch.equal(alone.position, third)
    assert batch.subsample(50, seed=1, epoch=0) is batch


def test_every_instance_is_drawn_as_often_as_any_other() -> None:
    """Of 40, 10 are drawn: each in a quarter of 2,000 epochs, within five standard deviations."""
    batch = pack([bag_of(40)], [0])
    draws = np.bincount(np.concatenate([batch.subsample(10, 0, epoch).position.numpy() for epoch in range(2000)]))
    assert np.abs(draws - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_values_of_a_patient_s_bag_are_cut_into_those_of_its_slides() -> None:
    entry = BagEntry("p", "p", 1, "train", ("a", "b"), (2, 3))
    cut = entry.by_slide(np.arange(5))
    assert {name: values.tolist() for name, values in cut.items()} == {"a": [0, 1], "b": [2, 3, 4]}


def test_an_empty_bag_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'slide': expected at least 1 instance, got 0"):
        pack([bag_of(0)], [0])


def test_global_batches_hold_every_bag_once_and_change_with_the_epoch() -> None:
    first, second = (global_batches(range(10), 4, seed=3, epoch=epoch) for epoch in (0, 1))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(itertools.chain(*first)) == list(range(10))
    assert first != second
    assert first == global_batches(range(10), 4, seed=3, epoch=0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 5))
def test_every_bag_is_dealt_once_and_no_rank_is_overfull(lengths: list[int], world_size: int) -> None:
    indices_of_rank = deal(range(len(lengths)), lengths, world_size)
    assert sorted(itertools.chain(*indices_of_rank)) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in indices) for indices in indices_of_rank]
    assert max(loads) - min(loads) <= max(lengths)


def test_micro_batches_keep_the_instance_budget_and_a_large_bag_stands_alone() -> None:
    assert micro_batches([0, 1, 2, 3], [3, 4, 20, 5], 8) == [[0, 1], [2], [3]]


def test_bags_are_read_once_while_they_fit_and_again_when_they_do_not() -> None:
    read: list[str] = []

    def reader(entry: BagEntry) -> torch.Tensor:
        read.append(entry.bag_id)
        return torch.zeros(entry.length, 2)

    entries = [BagEntry.of_slide(name, name, 0, "train", 4) for name in "ab"]
    size = 4 * 2 * 4
    bags = Bags(entries, reader, cache_bytes=size)
    for _ in range(2):
        assert [len(batch.labels) for batch in bags.batches([[0], [1]])] == [1, 1]
    assert read == ["a", *"abab"], "the first is opened once more, to learn how large an instance is"
    read.clear()
    bags = Bags(entries * 4, reader, cache_bytes=4 * size)
    for _ in range(2):
        assert sum(len(batch.labels) for batch in bags.batches([[k] for k in range(8)])) == 8
    assert read == ["a", *"abababab", *"abab"]


def test_a_bag_above_a_quarter_of_the_cache_is_not_read_before_it_is_walked_over() -> None:
    read: list[tuple[int, int]] = []

    def rows(start: int, stop: int) -> torch.Tensor:
        read.append((start, stop))
        return torch.zeros(stop - start, 2)

    bags = Bags([BagEntry.of_slide("a", "a", 0, "train", 100)], lambda _: BlockRows(rows, 100, 10), cache_bytes=3199)
    (batch,) = bags.batches([[0]])
    assert max(stop for _, stop in read) <= 20
    assert len(batch.instances) == 100
    assert isinstance(bags[0].instances, BlockRows)


def test_batches_leave_no_reading_thread_behind() -> None:
    bags = Bags([BagEntry.of_slide("a", "a", 0, "train", 1)], lambda _: torch.zeros(1, 1), cache_bytes=1000)
    gc.collect()  # readers of other tests
    before = threading.active_count()
    list(bags.batches([[0], [0]]))
    assert threading.active_count() == before
