"""Partitions of a cohort: balanced by size, each slide in one of them, and the same for every step."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milcore.errors import InputError
from milcore.ingestion.cohort import plan_cohort
from milcore.ingestion.partition import divide, read_partition, write_partitions
from milcore.runtime import storage
from milcore.store.store import PatchStore


def test_the_largest_goes_to_the_lightest() -> None:
    """9 | 7; then 5 to the 7 (12), 4 to the 9 (13), 3 to the 12 (15), 1 to the 13 (14)."""
    assert divide([1, 9, 3, 7, 5, 4], 2) == [[0, 1, 5], [2, 3, 4]]


def test_files_of_no_known_size_are_dealt_in_turn() -> None:
    assert [len(partition) for partition in divide([0] * 7, 3)] == [3, 2, 2]


@given(st.lists(st.integers(0, 10**9), max_size=60), st.integers(1, 8))
def test_every_item_is_in_one_partition_and_none_is_heavier_than_graham_allows(sizes: list[int], count: int) -> None:
    partitions = divide(sizes, count)
    assert sorted(item for partition in partitions for item in partition) == list(range(len(sizes)))
    heaviest = max(sum(sizes[item] for item in partition) for partition in partitions)
    assert heaviest <= sum(sizes) / count + max(sizes, default=0)


@pytest.fixture
def store(tmp_path: Path) -> PatchStore:
    """Files of 90, 70, 50, 40, 30, 10 bytes and one that is missing."""
    rows = ["slide_id,uri,label"]
    for k, size in enumerate((10, 90, 30, 70, 50, 40)):
        (tmp_path / f"{k}.svs").write_bytes(bytes(size))
        rows.append(f"s{k},{k}.svs,1")
    (tmp_path / "m.csv").write_text("\n".join([*rows, "s6,6.svs,1"]) + "\n")
    plan_cohort(str(tmp_path / "m.csv"), str(tmp_path / "store"))
    return PatchStore(str(tmp_path / "store"))


def _ids(store: PatchStore, index: int, count: int) -> list[str]:
    return [slide.slide_id for slide in read_partition(store, index, count)]


def test_a_written_division_is_what_every_step_reads(store: PatchStore, tmp_path: Path) -> None:
    write_partitions(store.uri, 2)
    (tmp_path / "1.svs").write_bytes(bytes(1))
    assert [_ids(store, k, 2) for k in range(2)] == [["s0", "s1", "s5", "s6"], ["s2", "s3", "s4"]]


def test_without_a_division_of_this_cohort_every_n_th_is_taken(store: PatchStore) -> None:
    assert _ids(store, 1, 3) == ["s1", "s4"]
    storage.write_json(storage.join(store.uri, "shares", "3.json"), [["s0"], ["s1"], ["other"]])
    assert _ids(store, 1, 3) == ["s1", "s4"]
    with pytest.raises(InputError, match="partition: expected 0 <= index < 3, got 3"):
        read_partition(store, 3, 3)


@pytest.mark.parametrize("written", [{"s0": 1}, 7, [1, 2], [["s0", "s1", "s2", "s3", "s4", "s5", "s6"]], None])
def test_a_division_of_another_kind_is_no_division(store: PatchStore, written: object) -> None:
    storage.write_json(storage.join(store.uri, "shares", "2.json"), written)
    assert [_ids(store, k, 2) for k in range(2)] == [["s0", "s2", "s4", "s6"], ["s1", "s3", "s5"]]
