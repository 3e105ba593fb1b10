"""Changes of classes, labels and patients since a table of splits was made."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from milcore.cohort.manifest import Manifest, Slide

# column of class names in a table of splits
CLASS = "class"
SHOWN = 5
T = TypeVar("T")


def classes_of(splits: pa.Table, default: Sequence[str]) -> dict[int, str]:
    """Class names by label in a table of splits.

    Args:
        splits: of this version, or of an earlier one, which had no class names.
        default: those of a table without.
    """
    if CLASS not in splits.column_names:
        return dict(enumerate(default))
    return dict(zip(splits["label"].to_pylist(), splits[CLASS].to_pylist(), strict=True))


def label_changes(rows: Iterable[Mapping[str, Any]], classes: Mapping[int, str], manifest: Manifest) -> list[str]:
    """Changes of classes, labels and patients since a split was made, as texts.

    Labels are compared by the names of their classes. The order of classes is compared among those that both know:
    which of two is positive depends on it.

    Args:
        rows: slide_id, patient_id, label of each slide.
        classes: class name by label, as the table was made.
        manifest: as it is now.
    """
    before = [classes[label] for label in sorted(classes)]
    return [*_order_change(before, manifest.classes), *_slide_changes(rows, classes, manifest)]


def _order_change(before: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    if [name for name in before if name in now] != [name for name in now if name in before]:
        yield f"the classes were {', '.join(before)}, are {', '.join(now)}"


def _slide_changes(rows: Iterable[Mapping[str, Any]], classes: Mapping[int, str], manifest: Manifest) -> Iterator[str]:
    slides = {slide.slide_id: slide for slide in manifest.slides}
    for row in rows:
        slide_id, before = row["slide_id"], classes.get(row["label"], f"label {row['label']}")
        slide = slides.get(slide_id)
        if slide is None:
            yield f"slide {slide_id} was {before}, is not in the manifest"
            continue
        now = manifest.class_of(slide)
        if before != now:
            yield f"slide {slide_id} was {before}, is {now}"
        if row["patient_id"] != slide.patient_id:
            yield f"slide {slide_id} was of patient {row['patient_id']}, is of {slide.patient_id}"


def value_changes(
    rows: Iterable[Mapping[str, Any]],
    manifest: Manifest,
    before: Callable[[Mapping[str, Any]], T],
    now: Callable[[Slide], T | None],
    text: Callable[[T | None], str],
) -> list[str]:
    """Changes of values and patients since a split was made, as texts.

    Args:
        rows: slide_id, patient_id and value of each slide.
        manifest: as it is now.
        before: value of a row.
        now: value of a slide; None where it has none.
        text: of a value, for a person.
    """
    slides = {slide.slide_id: slide for slide in manifest.slides}
    changes = []
    for row in rows:
        slide = slides.get(row["slide_id"])
        if slide is None:
            changes.append(f"slide {row['slide_id']} is not in the manifest")
        elif row["patient_id"] != slide.patient_id:
            changes.append(f"slide {slide.slide_id} was of patient {row['patient_id']}, is of {slide.patient_id}")
        elif before(row) != now(slide):
            changes.append(f"slide {slide.slide_id} was {text(before(row))}, is {text(now(slide))}")
    return changes


def changes_text(changes: Sequence[str]) -> str:
    """The first changes in one line, and how many more there are."""
    more = len(changes) - SHOWN
    return "; ".join(changes[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
