"""Changes of classes, labels and patients since a table of splits was made."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from milcore.cohort.manifest import Manifest
from milcore.cohort.splits import CLASS, check_splits
from milcore.errors import InputError

SHOWN = 5


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
        now = manifest.classes[slide.label]
        if before != now:
            yield f"slide {slide_id} was {before}, is {now}"
        if row["patient_id"] != slide.patient_id:
            yield f"slide {slide_id} was of patient {row['patient_id']}, is of {slide.patient_id}"


def changes_text(changes: Sequence[str]) -> str:
    """The first changes in one line, and how many more there are."""
    more = len(changes) - SHOWN
    return "; ".join(changes[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def splits_with_labels(splits: pa.Table, classes: Sequence[str], manifest: Manifest) -> pa.Table:
    """The same splits with patients and labels of the manifest.

    Args:
        splits: a row per slide.
        classes: as a model knows them; a label is the place of its class in them, whatever their order in the manifest.
        manifest: of all slides of ``splits``.

    Raises:
        InputError: the manifest lacks a slide, a slide has a class that is none of ``classes``, or a patient is in two
            splits or folds.
    """
    slides = [manifest[slide_id] for slide_id in splits["slide_id"].to_pylist()]
    names = [manifest.classes[slide.label] for slide in slides]
    unknown = [
        f"slide {slide.slide_id} is {name}" for slide, name in zip(slides, names, strict=True) if name not in classes
    ]
    if unknown:
        raise InputError(
            f"labels_from: expected classes that the run was trained on with the manifest's labels, got others "
            f"({changes_text(unknown)}); allowed: {', '.join(classes)}; take those of the run, or train again in "
            "another folder"
        )
    columns = {
        "patient_id": pa.array([slide.patient_id for slide in slides], pa.string()),
        "label": pa.array([classes.index(name) for name in names], pa.int64()),
        CLASS: pa.array(names, pa.string()),
    }
    for place, name in enumerate(splits.column_names):
        if name in columns:
            splits = splits.set_column(place, name, columns[name])
    check_splits(splits, "labels_from manifest")
    return splits
