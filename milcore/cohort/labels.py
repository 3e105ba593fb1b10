"""Labels of a cohort: their classes, and the order of these.

Labels are whole numbers, or names of classes. The surprise: a label's number is the position of its class name, and
index 1 is the positive class of two.
"""

from collections.abc import Iterable, Sequence

from milcore.cohort.table import is_missing, number_of
from milcore.config import MAX_CLASSES
from milcore.errors import InputError

BINARY_CLASSES = ("0", "1")
_BOOLEANS = ("true", "false")


def label_problems(labels: Iterable[tuple[str, str]], others: str = "rows") -> list[str]:
    """Problems of labels that are neither all whole numbers nor all class names.

    Of a mixture the rarer kind is reported. A missing label is none of them.

    Args:
        labels: the place of each, which begins its problem, and its text.
        others: what stands in these places.
    """
    labels = [(place, label) for place, label in labels if not is_missing(label)]
    numbers = [(place, label) for place, label in labels if number_of(label) is not None]
    names = [(place, label) for place, label in labels if number_of(label) is None]
    problems = [
        f"{place}: label: expected a whole number or a class name, got {label!r}"
        for place, label in numbers
        if not _is_whole(label)
    ]
    if numbers and names:
        rarer, other = (names, "numbers") if len(names) <= len(numbers) else (numbers, "class names")
        problems += [
            f"{place}: label: expected {other} as in the other {others}, got {label!r}" for place, label in rarer
        ]
    return problems


def class_names(labels: Iterable[str], positive: str | None = None, place: str = "") -> tuple[str, ...]:
    """Classes of labels in their order: numbers by value, names by the alphabet.

    The labels are without problems. Those of 0 alone, or of 1, have both of these classes.

    Args:
        labels: of all slides.
        positive: the class that gets index 1 of two; None: the later in that order.
        place: begins an error.

    Raises:
        InputError: there are too many, or ``positive`` is none of two.
    """
    names = {class_name(label) for label in labels}
    if names.issubset(BINARY_CLASSES):
        names.update(BINARY_CLASSES)
    classes = tuple(sorted(names, key=int if all(map(_is_whole, names)) else None))
    if len(classes) > MAX_CLASSES:
        raise InputError(
            f"{place}label: expected classes, got {len(classes):,} different ones; allowed: {MAX_CLASSES:,}; is it the "
            "column of labels?"
        )
    return classes if positive is None else _with_positive(classes, class_name(positive))


def class_name(label: str) -> str:
    """Class of a label: 1 and 1.0 have one, TRUE and True too."""
    number = number_of(label)
    if number is not None and number.is_integer():
        return str(int(number))
    return label.capitalize() if label.lower() in _BOOLEANS else label


def _with_positive(classes: Sequence[str], positive: str) -> tuple[str, ...]:
    if positive not in classes or len(classes) != 2:
        raise InputError(
            f"positive: expected one of two classes, got {positive!r} with the class(es) {', '.join(classes)}; "
            "allowed: a class where the labels have two, else none"
        )
    return (*(name for name in classes if name != positive), positive)


def _is_whole(label: str) -> bool:
    number = number_of(label)
    return number is not None and number.is_integer()
