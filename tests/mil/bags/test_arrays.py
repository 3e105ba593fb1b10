"""Bags of arrays: what is taken, what is refused with the bag's name, and what is copied."""

import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milcore.errors import InputError
from milcore.mil.bags.bags import Bags

VALUES = np.arange(12.0).reshape(4, 3)  # exact in every type below


def values_of(bags: Bags, index: int = 0) -> torch.Tensor:
    return bags[index].instances[:]


def memory_map(folder: Path) -> np.ndarray:
    np.save(folder / "map.npy", VALUES.astype(np.float16))
    mapped: np.ndarray = np.load(folder / "map.npy", mmap_mode="r")
    return mapped


@pytest.mark.parametrize(
    ("make", "stored"),
    [
        (lambda: VALUES.astype(np.float16), torch.float16),
        (lambda: VALUES.astype(np.float32), torch.float32),
        (lambda: VALUES, torch.float32),
        (lambda: VALUES.astype(np.longdouble), torch.float32),
        (lambda: VALUES.astype(np.int64), torch.float32),
        (lambda: VALUES.astype(np.uint8), torch.float32),
        (lambda: VALUES.astype(">f4"), torch.float32),
        (lambda: VALUES.astype(">f2"), torch.float16),
        (lambda: np.asfortranarray(VALUES.astype(np.float32)), torch.float32),
        (lambda: np.repeat(VALUES, 2, axis=1).astype(np.float32)[:, ::2], torch.float32),
        (lambda: VALUES[::-1].astype(np.float32)[::-1], torch.float32),
        (VALUES.tolist, torch.float32),
        (lambda: [[int(value) for value in row] for row in VALUES], torch.float32),
        (lambda: torch.from_numpy(VALUES), torch.float32),
        (lambda: torch.from_numpy(VALUES).half(), torch.float16),
        (lambda: torch.from_numpy(VALUES).bfloat16(), torch.float32),
        (lambda: torch.from_numpy(VALUES).float().requires_grad_(), torch.float32),
        (lambda: torch.from_numpy(VALUES.T.copy()).float().T, torch.float32),
    ],
)
def test_numbers_of_any_kind_are_taken(make: Callable[[], Any], stored: torch.dtype) -> None:
    bags = Bags.from_arrays([make()], [0])
    assert values_of(bags).dtype == stored
    assert not values_of(bags).requires_grad
    assert torch.equal(values_of(bags).double(), torch.from_numpy(VALUES))
    rows = bags.with_cache(0)[0].instances
    assert torch.equal(rows[1:3].double(), torch.from_numpy(VALUES[1:3]))


def test_a_memory_map_that_cannot_be_written_to_is_taken(tmp_path: Path) -> None:
    bags = Bags.from_arrays([memory_map(tmp_path)], [0])
    assert values_of(bags).dtype == torch.float16
    assert torch.equal(values_of(bags).double(), torch.from_numpy(VALUES))


def test_a_data_set_in_a_file_is_taken(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "features.h5", "w") as file:
        bags = Bags.from_arrays([file.create_dataset("features", data=VALUES.astype(np.float32))], [0])
    assert torch.equal(values_of(bags).double(), torch.from_numpy(VALUES))


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_arrays_in_the_types_of_a_store_are_not_copied(kind: type) -> None:
    array = VALUES.astype(kind)
    bags = Bags.from_arrays([array], [0])
    assert np.shares_memory(bags[0].instances[:].numpy(), array)
    assert np.shares_memory(Bags.from_arrays([torch.from_numpy(array)], [0])[0].instances[:].numpy(), array)


def test_a_memory_map_is_never_whole_in_memory(tmp_path: Path) -> None:
    """64 MB on disk in float64, which would be 32 MB as float32."""
    mapped = np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.float64, shape=(125_000, 64))
    mapped[:] = 1.0
    mapped.flush()
    tracemalloc.start()
    try:
        bags = Bags.from_arrays([np.load(tmp_path / "big.npy", mmap_mode="r")], [0]).with_cache(1_000_000)
        instances = bags[0].instances
        total = sum(float(instances[start : start + 1000].sum()) for start in range(0, 125_000, 1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 125_000 * 64
    assert peak < 16e6


@pytest.mark.parametrize(
    ("bag", "problem"),
    [
        (np.zeros((0, 3)), "expected at least 1 instance and 1 feature, got shape (0, 3)"),
        (np.zeros((2, 0)), "expected at least 1 instance and 1 feature, got shape (2, 0)"),
        ([], "expected the axes (instance, feature), got shape (0,)"),
        (np.zeros(3), "expected the axes (instance, feature), got shape (3,)"),
        (np.zeros((2, 3, 1)), "expected the axes (instance, feature), got shape (2, 3, 1)"),
        (np.zeros((2, 4)), "expected 3 features as in bag 0, got 4"),
        (np.array([[1, 2, 3], [4, np.nan, 6]]), "expected finite numbers, got nan in instance 1, feature 1"),
        (np.array([[1, 2, -np.inf]]), "expected finite numbers, got -inf in instance 0, feature 2"),
        (np.array([[1, 1e39, 3]]), "expected finite numbers, got 1e+39 in instance 0, feature 1"),
        (torch.tensor([[1.0, 2.0, torch.nan]]), "expected finite numbers, got nan in instance 0, feature 2"),
        (np.full((2, 3), None), "expected numbers, got type object"),
        (np.array([["1", "2", "3"]]), "expected numbers, got type <U1"),
        (np.ones((2, 3), bool), "expected numbers, got type bool"),
        (np.ones((2, 3), complex), "expected numbers, got type complex128"),
        (np.ma.masked_greater(np.ones((2, 3)), 0), "expected numbers, got a masked array; fill its gaps"),
        (torch.zeros(2, 3).to_sparse(), "expected a dense tensor, got one of layout torch.sparse_coo on cpu"),
        (torch.zeros(2, 3, device="meta"), "expected a dense tensor, got one of layout torch.strided on meta"),
        ([[1, 2, 3], [4, 5]], "expected rows of one length, got rows of several"),
        ("features", "expected numbers, got type <U8"),
        (None, "expected numbers, got type object"),
    ],
)
def test_a_bag_of_something_else_is_refused_by_its_index_and_its_key(bag: Any, problem: str) -> None:
    with pytest.raises(InputError, match=f"^arrays: {re.escape(f'bag 1: {problem}; allowed: finite numbers (n, d)')}"):
        Bags.from_arrays([VALUES, bag], [0, 1])
    named = problem.replace("bag 0", "bag 'good'")
    with pytest.raises(InputError, match=re.escape(f"bag 'S7': {named}")):
        Bags.from_arrays({"good": VALUES, "S7": bag}, [0, 1])


def test_every_bad_bag_is_told_up_to_ten() -> None:
    with pytest.raises(InputError, match=r"bag 1: .*; bag 2: .*; allowed"):
        Bags.from_arrays([VALUES, VALUES[:0], VALUES[0]], [0, 1, 1])
    with pytest.raises(InputError, match=r"bag 9: .*; 2 more; allowed"):
        Bags.from_arrays([VALUES[:0]] * 12, [0] * 12)
    with pytest.raises(InputError, match="arrays: expected bags, got none"):
        Bags.from_arrays([], [])


def test_too_many_features_are_refused() -> None:
    with pytest.raises(InputError, match="bag 0: expected at most 65,536 features, got 65,537"):
        Bags.from_arrays([np.zeros((1, 65_537))], [0])


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([0, 1, 1], ("0", "1"), [0, 1, 1]),
        (np.array([2, 10, 2]), ("2", "10"), [0, 1, 0]),
        ([0, 0, 0], ("0", "1"), [0, 0, 0]),
        ([1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        ([True, False, True], ("0", "1"), [1, 0, 1]),
        (np.array([True, False, True]), ("0", "1"), [1, 0, 1]),
        ([np.int8(1), np.float32(0), np.bool_(True)], ("0", "1"), [1, 0, 1]),
        (torch.tensor([0, 2, 1]), ("0", "1", "2"), [0, 2, 1]),
        ([torch.tensor(1), torch.tensor(0), torch.tensor(1)], ("0", "1"), [1, 0, 1]),
        (["tumour", "normal", "tumour"], ("normal", "tumour"), [1, 0, 1]),
        (np.array(["b", "a", "c"]), ("a", "b", "c"), [1, 0, 2]),
        (("TRUE", "false", "True"), ("False", "True"), [1, 0, 1]),
    ],
)
def test_labels_become_classes_in_the_order_of_a_manifest(labels: Any, classes: tuple[str, ...], numbers: Any) -> None:
    bags = Bags.from_arrays([VALUES] * 3, labels)
    assert bags.class_names == classes
    assert [entry.label for entry in bags.entries] == numbers
    assert bags.classes == len(classes)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ([0, 1], "labels: expected one for each of 3 bags, got 2; allowed"),
        (np.array(1), "labels: expected one for each of 3 bags, got array(1); allowed"),
        ("abc", "labels: expected one for each of 3 bags, got 'abc'; allowed"),
        ([0, None, 1], "labels: bag 1: expected a value, got None; allowed: one for each bag"),
        ([0, float("nan"), 1], "labels: bag 1: expected a value, got nan; allowed: one for each bag"),
        ([0, 0.5, 1], "labels: bag 1: label: expected a whole number or a class name, got '0.5'; allowed"),
        ([0, "tumour", 1], "labels: bag 1: label: expected numbers as in the other bags, got 'tumour'; allowed"),
        ({"a": 1}, "labels: bag 0: expected a value, got None"),
        ({0, 1, 2}, "labels: expected values in the order of the bags, got a set, which has none; allowed"),
        (frozenset("abc"), "labels: expected values in the order of the bags, got a frozenset, which has none"),
        ({0: 1, 1: 0, 2: 0}.items(), "labels: expected values in the order of the bags, got a dict_items"),
        ([[0, 1], [1, 0], [0, 1]], "labels: bag 0: expected one value, got [0, 1]; bag 1: "),
        ([0, {"label": 1}, 1], "labels: bag 1: expected one value, got {'label': 1}; allowed: one for each bag"),
        (np.array([[0], [1], [0]]), "labels: bag 0: expected one value, got [0]; bag 1: "),
        (torch.tensor([[0], [1], [0]]), "labels: bag 0: expected one value, got [0]; bag 1: "),
        ([0, torch.tensor([1]), 0], "labels: bag 1: expected one value, got tensor([1]); allowed"),
        ([0, np.array([1]), 0], "labels: bag 1: expected one value, got array([1]); allowed"),
    ],
)
def test_a_label_that_is_none_is_refused(labels: Any, error: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(error)):
        Bags.from_arrays([VALUES] * 3, labels)


def test_without_patients_and_splits_every_bag_is_of_another_patient_and_trains() -> None:
    bags = Bags.from_arrays([VALUES, VALUES[:2]], ["b", "a"])
    first, second = bags.entries
    assert (first.bag_id, first.patient_id, first.split, first.length) == ("bag-0000", "bag-0000", "train", 4)
    assert (second.bag_id, second.patient_id, second.split, second.length) == ("bag-0001", "bag-0001", "train", 2)


def test_arrays_by_id_take_labels_patients_and_splits_by_id_in_any_order() -> None:
    bags = Bags.from_arrays(
        {"x": VALUES, "y": VALUES},
        {"z": 1, "y": 0, "x": 1},
        patients={"y": 7, "x": 8},
        splits={"y": "val", "x": "train"},
    )
    assert [(e.bag_id, e.label, e.patient_id, e.split) for e in bags.entries] == [
        ("x", 1, "8", "train"),
        ("y", 0, "7", "val"),
    ]


class Column:
    """What of a pandas Series or, with two axes, of a data frame counts here."""

    def __init__(self, index: list[Any], values: list[Any]) -> None:
        self.index, self.values = index, values
        self.ndim = 2 if isinstance(values[0], list) else 1

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values if self.ndim == 1 else ["name of a column"])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype)

    def to_dict(self) -> dict[Any, Any]:
        return dict(zip(self.index, self.values, strict=True))


def test_a_series_counts_by_its_index_for_arrays_by_id_and_by_its_order_for_a_list() -> None:
    labels = Column(["a", "e", "f"], ["normal", "normal", "tumour"])
    bags = Bags.from_arrays(
        {"f": VALUES, "e": VALUES},
        labels,
        patients=Column(["e", "f"], [1, 2]),
        splits=Column(["e", "f"], ["val", "train"]),
    )
    assert [(e.bag_id, e.label, e.patient_id, e.split) for e in bags.entries] == [
        ("f", 1, "2", "train"),
        ("e", 0, "1", "val"),
    ]
    assert [entry.label for entry in Bags.from_arrays([VALUES] * 3, labels).entries] == [0, 0, 1]


def test_a_series_of_arrays_has_ids() -> None:
    bags = Bags.from_arrays(Column([7, 3], [VALUES, VALUES[:2]]), Column([3, 7, 9], [0, 1, 1]))
    assert [(e.bag_id, e.label, e.length) for e in bags.entries] == [("bag-0007", 1, 4), ("bag-0003", 0, 2)]


def test_a_series_with_other_keys_one_key_twice_or_several_columns_is_refused() -> None:
    arrays = {"a": VALUES, "b": VALUES}
    with pytest.raises(InputError, match=r"labels: bag 'a': expected a value, got None; .* by the bags' keys"):
        Bags.from_arrays(arrays, Column([0, 1], [0, 1]))
    with pytest.raises(InputError, match="labels: expected an index with each key once, got 3 values of 2 keys"):
        Bags.from_arrays(arrays, Column(["a", "b", "a"], [0, 1, 1]))
    for table in (arrays, [VALUES] * 2):
        with pytest.raises(InputError, match=r"labels: bag .*: expected one value, got \[1\]"):
            Bags.from_arrays(table, Column(["a", "b"], [[0], [1]]))


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ({0: VALUES, "bag-0000": VALUES}, "key 'bag-0000': expected another id than that of key 0, got 'bag-0000'"),
        ({"a": VALUES, (1, 2): VALUES}, "key (1, 2): expected a text or a whole number, got type tuple"),
        ({Path("a.h5"): VALUES}, "key PosixPath('a.h5'): expected a text or a whole number, got type PosixPath"),
        ({1.5: VALUES}, "key 1.5: expected a text or a whole number, got type float"),
        ({True: VALUES}, "key True: expected a text or a whole number, got type bool"),
        ({None: VALUES}, "key None: expected a text or a whole number, got type NoneType"),
        ({"": VALUES}, "key '': expected an id, got an empty text"),
        ({" ": VALUES}, "key ' ': expected an id, got an empty text"),
        ({"a\n": VALUES}, "key 'a\\n': expected text, got the control character '\\n' in it; remove it"),
        (None, "expected bags, got None; allowed: a list of arrays (n, d), or arrays by the bags' ids"),
        (3, "expected bags, got 3; allowed"),
        (np.array(3.0), "expected bags, got array(3.); allowed"),
        ({((1.0, 2.0),)}, "expected values in the order of the bags, got a set, which has none; allowed"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_arrays_without_an_id_each_or_an_order_are_refused(arrays: Any, error: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(f"arrays: {error}")):
        Bags.from_arrays(arrays, [0, 1])


def test_numpy_s_numbers_and_texts_are_ids() -> None:
    bags = Bags.from_arrays({np.int64(3): VALUES, np.str_("x"): VALUES}, {"x": 1, 3: 0})
    assert [(e.bag_id, e.label) for e in bags.entries] == [("bag-0003", 0), ("x", 1)]
    assert {type(entry.bag_id) for entry in bags.entries} == {str}


def test_bags_are_shown_without_a_read() -> None:
    bags = Bags.from_arrays([VALUES, VALUES[:2]], ["tumour", "normal"])
    unread = Bags(bags.entries, lambda entry: pytest.fail(f"{entry} is read"), 0, bags.class_names)
    assert repr(unread) == "Bags(2 bags, 6 instances, classes normal, tumour)"
    many = Bags(bags.entries, lambda entry: pytest.fail(f"{entry} is read"), 0, tuple(map(str, range(11))))
    assert repr(many) == "Bags(2 bags, 6 instances, 11 classes)"
    assert repr(Bags((), lambda entry: pytest.fail(f"{entry} is read"), 0)) == "Bags(0 bags, 0 instances)"


def test_a_split_of_another_name_and_a_patient_in_two_are_refused() -> None:
    with pytest.raises(
        InputError, match="splits: bag 1: expected the name of a split, got 'valid'; allowed: train, val"
    ):
        Bags.from_arrays([VALUES] * 2, [0, 1], splits=["train", "valid"])
    with pytest.raises(
        InputError, match="splits: bag 2: expected one split per patient, got 'train' and 'test' for 'p'"
    ):
        Bags.from_arrays([VALUES] * 3, [0, 1, 1], patients=["p", "q", "p"], splits=["train", "test", "test"])
    with pytest.raises(InputError, match="patients: bag 1: expected a value, got None"):
        Bags.from_arrays([VALUES] * 2, [0, 1], patients=["p", None])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_bags_keep_their_order_and_lengths(lengths: list[int]) -> None:
    arrays = [np.full((length, 2), index, np.float32) for index, length in enumerate(lengths)]
    bags = Bags.from_arrays((array for array in arrays), [0] * len(arrays))
    assert bags.lengths == tuple(lengths)
    assert [float(bag.instances[:1][0, 0]) for bag in bags] == list(range(len(lengths)))
