"""Bags of arrays: their checks and their rows.

The arrays lie in memory or on a memory map. Errors name the bag, by its index or, of a mapping, by its key.

Axes: instance, feature.
"""

import reprlib
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from milcore.cohort.labels import class_name, class_names, label_problems
from milcore.cohort.survival import FollowUp
from milcore.cohort.table import cell_text, control_problem, is_missing, number_text, plain_number
from milcore.config import MAX_WIDTH, SPLIT_NAMES
from milcore.errors import InputError

# by key, or one after another
ArraysOfBags = Mapping[str, Any] | Iterable[Any]
ValuesOfBags = Mapping[Any, object] | Iterable[object]

PROBLEMS_SHOWN = 10
_VALUES_PER_CHECK = 1 << 20


class ArrayRows:
    """Rows of an array as float16 or float32.

    They are no copy where the array has one of these types. Slices of other types are converted, those of a memory map
    that is read-only are read.

    Args:
        array: numbers.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self._type = np.float16 if array.dtype.kind == "f" and array.dtype.itemsize == 2 else np.float32

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: slice) -> Float[Tensor, "instance feature"]:
        with np.errstate(over="ignore"):  # infinity, which is refused
            numbers = np.require(self._array[rows], self._type, ["C", "W"])
        # one reversed row is in order, but torch takes no negative stride
        return torch.from_numpy(numbers.copy() if min(numbers.strides) < 0 else numbers)


class BagLabels(NamedTuple):
    """Labels, patients and splits of bags, in their order.

    ``classes[label]`` is the name of a bag's class.
    """

    labels: list[int]
    classes: tuple[str, ...]
    patients: list[str]
    splits: list[str]


def by_key(name: str, values: Any) -> Any:
    """Mapping of a pandas Series and the like; others as they are.

    Args:
        name: of the argument.
        values: anything. What has one axis, an ``index`` and ``to_dict`` has keys.

    Raises:
        InputError: several values have one key.
    """
    if isinstance(values, Mapping) or not (hasattr(values, "index") and hasattr(values, "to_dict")):
        return values
    if getattr(values, "ndim", 1) != 1:
        return values
    of_key = values.to_dict()
    if len(of_key) != len(values):
        raise InputError(
            f"{name}: expected an index with each key once, got {len(values)} values of {len(of_key)} keys; allowed: "
            "one value per key; drop the others"
        )
    return of_key


def array_rows(arrays: ArraysOfBags) -> dict[str | int, ArrayRows]:
    """Rows of each bag, by its key in a mapping, else by its index.

    Args:
        arrays: see ``Bags.from_arrays``.

    Raises:
        InputError: there is none, keys are no ids, or bags are not finite numbers (n, d) with n >= 1 and one d.
    """
    items = _items(arrays)
    rows: dict[str | int, ArrayRows] = {}
    problems: list[str] = []
    width: tuple[str, int] | None = None
    for key, array in items:
        try:
            of_bag = _numbers(array)
            width = width or (f"bag {key!r}", of_bag.shape[1])
            if of_bag.shape[1] != width[1]:
                raise ValueError(f"expected {width[1]} features as in {width[0]}, got {of_bag.shape[1]}")  # noqa: TRY301 - one place names the bag
            rows[key] = ArrayRows(of_bag)
            _check_finite(of_bag, rows[key])
        except ValueError as error:
            problems.append(f"bag {key!r}: {error}")
    if not rows and not problems:
        raise InputError("arrays: expected bags, got none; allowed: one array (n, d) per bag")
    _check(
        "arrays", problems, "allowed: finite numbers (n, d), n from 1, one d in all bags; mend these bags or drop them"
    )
    return rows


def bag_places(rows: Mapping[str | int, ArrayRows], places: ArraysOfBags) -> dict[str, Float[Tensor, "instance 2"]]:
    """Check places of instances; x and y by the bag's id, in fp64.

    Args:
        rows: of the bags.
        places: see ``Bags.from_arrays``.

    Raises:
        InputError: a bag has none, or they are not finite numbers (n, 2).
    """
    of_bags = {key: _places(array) for key, array in _items(places)}
    problems = [
        f"bag {key!r}: expected shape ({len(of_bag)}, 2), got "
        f"{'none' if key not in of_bags else f'{tuple(of_bags[key].shape)}'}"
        for key, of_bag in rows.items()
        if key not in of_bags or of_bags[key].shape != (len(of_bag), 2)
    ]
    problems += [
        f"bag {key!r}: expected finite numbers, got others"
        for key in rows
        if key in of_bags and not torch.isfinite(of_bags[key]).all()
    ]
    _check("places", problems, "allowed: x and y of every instance, by the bags' order or ids")
    return {bag_id(key): of_bags[key] for key in rows}


def _places(array: Any) -> Tensor:
    return torch.as_tensor(array if isinstance(array, Tensor) else np.asarray(array)).double()


def bag_labels(
    keys: Sequence[str | int], labels: ValuesOfBags | None, patients: ValuesOfBags | None, splits: ValuesOfBags | None
) -> BagLabels:
    """Check labels, patients and splits of bags.

    Args:
        keys: of the bags, in the order of values that are no mapping.
        labels: see ``Bags.from_arrays``; None: all are 0, of no class.
        patients: of each bag; None: every bag is of another.
        splits: of each bag; None: all train.

    Raises:
        InputError: a value is missing, labels are neither whole numbers nor names, a split has another name, or a
            patient is in two.
    """
    label_of = dict.fromkeys(keys, "0") if labels is None else _texts("labels", keys, labels)
    problems = label_problems(((f"bag {key!r}", label) for key, label in label_of.items()), "bags")
    _check("labels", problems, "allowed: whole numbers, or names of classes")
    classes = class_names(label_of.values())
    patient_of = {key: bag_id(key) for key in keys} if patients is None else _texts("patients", keys, patients)
    split_of = dict.fromkeys(keys, "train") if splits is None else _texts("splits", keys, splits)
    _check("splits", _split_problems(split_of, patient_of), f"allowed: {', '.join(SPLIT_NAMES)}, one for each patient")
    return BagLabels(
        [classes.index(class_name(label)) for label in label_of.values()],
        () if labels is None else classes,
        list(patient_of.values()),
        list(split_of.values()),
    )


def bag_follow_ups(
    keys: Sequence[str | int], times: ValuesOfBags | None, events: ValuesOfBags | None
) -> list[FollowUp | None]:
    """Check times and events of bags.

    Args:
        keys: of the bags, in the order of values that are no mapping.
        times: to the event or to censoring, above 0; None: none.
        events: 1 where the event came, 0 where censored; None: none.

    Raises:
        InputError: one of both is given, a value is missing, a time is not above 0, or an event is not 0 or 1.
    """
    if times is None and events is None:
        return [None] * len(keys)
    if times is None or events is None:
        raise InputError(
            f"{'times' if times is None else 'events'}: expected values with "
            f"{'events' if times is None else 'times'}, got none; allowed: both, or neither"
        )
    time_of, event_of = _texts("times", keys, times), _texts("events", keys, events)
    faulty = [f"bag {key!r}: got {time}" for key, time in time_of.items() if not (plain_number(time) or 0.0) > 0.0]
    _check("times: expected times above 0", faulty, "allowed: finite numbers above 0")
    faulty = [f"bag {key!r}: got {event}" for key, event in event_of.items() if plain_number(event) not in {0.0, 1.0}]
    _check("events: expected 0 or 1", faulty, "allowed: 1 where the event came, 0 where censored")
    return [FollowUp(plain_number(time_of[key]) or 0.0, int(plain_number(event_of[key]) or 0)) for key in keys]


def bag_values(keys: Sequence[str | int], values: ValuesOfBags | None) -> list[float | None]:
    """Check values of bags.

    Args:
        keys: of the bags, in the order of values that are no mapping.
        values: a number of each; None: none.

    Raises:
        InputError: a value is missing or no finite number.
    """
    if values is None:
        return [None] * len(keys)
    text_of = _texts("values", keys, values)
    faulty = [f"bag {key!r}: got {number_text(text)}" for key, text in text_of.items() if plain_number(text) is None]
    _check("values: expected numbers", faulty, "allowed: finite numbers")
    return [plain_number(text_of[key]) for key in keys]


def bag_id(key: str | int) -> str:
    """Id of a bag: its key, or ``bag-0003`` for index 3."""
    return f"bag-{key:04d}" if isinstance(key, int) else key


def _items(arrays: Any) -> Iterable[tuple[str | int, Any]]:
    """Arrays with their keys, or with their indices.

    Raises:
        InputError: they have neither, or a key is no id.
    """
    if isinstance(arrays, Mapping):
        keys = {key: _plain_key(key) for key in arrays}
        _check("arrays", _key_problems(keys), "allowed: texts and whole numbers, each another id; change these keys")
        return ((keys[key], array) for key, array in arrays.items())
    _check_order("arrays", arrays)
    try:
        return enumerate(arrays)
    except TypeError:
        raise InputError(
            f"arrays: expected bags, got {reprlib.repr(arrays)}; allowed: a list of arrays (n, d), or arrays by the "
            "bags' ids"
        ) from None


def _plain_key(key: object) -> Any:
    """Python's value of a key that is a scalar of NumPy."""
    return key.item() if isinstance(key, np.generic) else key


def _key_problems(keys: Mapping[Any, Any]) -> Iterator[str]:
    key_of_id: dict[str, object] = {}
    for given, key in keys.items():
        if isinstance(key, bool) or not isinstance(key, str | int):
            yield f"key {given!r}: expected a text or a whole number, got type {type(given).__name__}"
        elif isinstance(key, str) and (not key.strip() or control_problem(key)):
            yield f"key {given!r}: {control_problem(key) or 'expected an id, got an empty text'}"
        elif key_of_id.setdefault(bag_id(key), given) is not given:
            yield f"key {given!r}: expected another id than that of key {key_of_id[bag_id(key)]!r}, got {bag_id(key)!r}"


def _check_order(name: str, values: object) -> None:
    """Check that values are not a set.

    Raises:
        InputError: they are.
    """
    if isinstance(values, AbstractSet) and not isinstance(values, KeysView):
        raise InputError(
            f"{name}: expected values in the order of the bags, got a {type(values).__name__}, which has none; "
            "allowed: a list, an array, or a mapping by the bags' ids"
        )


def _numbers(array: Any) -> np.ndarray:
    """Array of numbers with two axes and an instance.

    Raises:
        ValueError: it is another.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError("expected numbers, got a masked array; fill its gaps")  # noqa: TRY004 - as of other bad values
    if isinstance(array, Tensor):
        if array.layout != torch.strided or array.is_quantized or array.is_meta:
            raise ValueError(f"expected a dense tensor, got one of layout {array.layout} on {array.device}")
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy(force=True)
    try:
        numbers = np.asarray(array)
    except ValueError:
        raise ValueError("expected rows of one length, got rows of several") from None
    if numbers.dtype.kind not in "fiu":
        raise ValueError(f"expected numbers, got type {numbers.dtype}")
    if numbers.ndim != 2:
        raise ValueError(f"expected the axes (instance, feature), got shape {numbers.shape}")
    if 0 in numbers.shape:
        raise ValueError(f"expected at least 1 instance and 1 feature, got shape {numbers.shape}")
    if numbers.shape[1] > MAX_WIDTH:
        raise ValueError(f"expected at most {MAX_WIDTH:,} features, got {numbers.shape[1]:,}")
    return numbers


def _check_finite(array: np.ndarray, rows: ArrayRows) -> None:
    """Check that values are finite as float32.

    A few MB at a time, so that a memory map is never whole in memory.

    Raises:
        ValueError: a value is none, or infinite as float32.
    """
    step = max(1, _VALUES_PER_CHECK // array.shape[1])
    for start in range(0, len(rows), step):
        finite = torch.isfinite(rows[start : start + step])
        if not finite.all():
            row, column = divmod(int((~finite).flatten().nonzero()[0]), array.shape[1])
            raise ValueError(
                f"expected finite numbers, got {array[start + row, column]} in instance {start + row}, feature {column}"
            )


def _texts(name: str, keys: Sequence[str | int], values: ValuesOfBags) -> dict[str | int, str]:
    """Value of each bag as a text; letters with marks have one form.

    Further keys of a mapping are not read.

    Raises:
        InputError: a bag has none or several, or a list has more values than there are bags.
    """
    if isinstance(values, Mapping):
        of_bag: dict[str | int, object] = {key: _scalar(values.get(key)) for key in keys}
    else:
        listed = _listed(name, values)
        if listed is None or len(listed) != len(keys):
            got = repr(values) if listed is None else len(listed)
            raise InputError(
                f"{name}: expected one for each of {len(keys)} bags, got {got}; allowed: a list, or an array"
            )
        of_bag = dict(zip(keys, map(_scalar, listed), strict=True))
    several = [
        f"bag {key!r}: expected one value, got {reprlib.repr(value)}"
        for key, value in of_bag.items()
        if isinstance(value, Iterable) and not isinstance(value, str | bytes)
    ]
    _check(name, several, "allowed: one for each bag: of a column ravel(), of one-hot rows argmax(axis=1)")
    texts = {key: unicodedata.normalize("NFC", cell_text(value)) for key, value in of_bag.items()}
    problems = [
        f"bag {key!r}: expected a value, got {of_bag[key]!r}" for key, text in texts.items() if is_missing(text)
    ]
    at = ", by the bags' keys" if isinstance(values, Mapping) else ""
    _check(name, problems, f"allowed: one for each bag{at}")
    return texts


def _listed(name: str, values: Any) -> list[object] | None:
    """List of values, rows of a table as lists; None for one value."""
    _check_order(name, values)
    if hasattr(values, "ndim"):
        values = (values if isinstance(values, np.ndarray | Tensor) else np.asarray(values)).tolist()
    return list(values) if isinstance(values, Iterable) and not isinstance(values, str | bytes) else None


def _scalar(value: Any) -> object:
    """Python's value of a scalar of NumPy or torch; others as they are."""
    return value.item() if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0 else value


def _split_problems(split_of: Mapping[str | int, str], patient_of: Mapping[str | int, str]) -> Iterator[str]:
    split_of_patient: dict[Hashable, str] = {}
    for key, split in split_of.items():
        if split not in SPLIT_NAMES:
            yield f"bag {key!r}: expected the name of a split, got {split!r}"
        other = split_of_patient.setdefault(patient_of[key], split)
        if other != split:
            yield f"bag {key!r}: expected one split per patient, got {other!r} and {split!r} for {patient_of[key]!r}"


def _check(name: str, problems: Iterable[str], allowed: str) -> None:
    """Raise problems as one line.

    Raises:
        InputError: there are problems.
    """
    listed = list(problems)
    if listed:
        further = [f"{len(listed) - PROBLEMS_SHOWN} more"] if len(listed) > PROBLEMS_SHOWN else []
        raise InputError(f"{name}: {'; '.join([*listed[:PROBLEMS_SHOWN], *further])}; {allowed}")
