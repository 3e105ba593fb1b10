"""Classification in the room of cohorts: labels, their checks, and strata by label."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa

from milcore.cohort.label_changes import CLASS, changes_text, label_changes
from milcore.cohort.manifest import Manifest
from milcore.cohort.target import CohortTarget, Rows
from milcore.config import TargetConfig, TrainConfig
from milcore.errors import InputError


def _table(manifest: Manifest, _: TargetConfig) -> pa.Table:
    slides = manifest.slides
    return pa.table(
        {
            "slide_id": pa.array([slide.slide_id for slide in slides], pa.string()),
            "patient_id": pa.array([slide.patient_id for slide in slides], pa.string()),
            "label": pa.array([slide.label for slide in slides], pa.int64()),
            CLASS: pa.array([manifest.class_of(slide) for slide in slides], pa.string()),
        }
    )


def _strata(rows: Rows, _: int) -> dict[str, int]:
    """The highest label among each patient's slides."""
    label_of: dict[str, int] = {}
    for row in rows:
        label_of[row["patient_id"]] = max(row["label"], label_of.get(row["patient_id"], 0))
    return label_of


def _stratum(label: int) -> str:
    return f"class {label}"


def _check_manifest(manifest: Manifest, _: TargetConfig) -> None:
    """Check that there are several classes.

    Raises:
        InputError: there is one, or no label.
    """
    if not manifest.classes:
        raise InputError(
            "manifest column label: expected the class of every slide, got no such column; allowed: names or whole "
            f"numbers; add it, or name another target; further columns: {', '.join(manifest.columns) or 'none'}"
        )
    if len(manifest.classes) < 2:
        raise InputError(
            f"manifest column label: expected slides of several classes, got only {', '.join(manifest.classes)}; "
            "allowed: two classes or more; add slides of another"
        )


def _check_splits(splits: pa.Table, manifest: Manifest, train: TrainConfig) -> None:
    _check_training_classes(splits, manifest.classes)
    if train.bag == "patient":
        _check_patients(splits, manifest.classes)


def _check_patients(splits: pa.Table, classes: Sequence[str]) -> None:
    """Check that all slides of a patient have one class.

    Raises:
        InputError: a patient with several.
    """
    labels: dict[str, set[int]] = {}
    for row in splits.to_pylist():
        labels.setdefault(row["patient_id"], set()).add(row["label"])
    mixed = [
        f"patient {patient!r} has {', '.join(classes[label] for label in sorted(of_patient))}"
        for patient, of_patient in labels.items()
        if len(of_patient) > 1
    ]
    if mixed:
        raise InputError(
            f"bag: expected slides of one class per patient where a patient is a bag, got several "
            f"({changes_text(mixed)}); allowed: one class; label every slide with the patient's, or take bag slide"
        )


def _check_training_classes(splits: pa.Table, classes: Sequence[str]) -> None:
    """Check that the training split has slides of every class.

    Raises:
        InputError: classes it lacks.
    """
    labels = {row["label"] for row in splits.to_pylist() if row["split"] == "train"}
    lacking = [name for label, name in enumerate(classes) if label not in labels]
    if lacking:
        raise InputError(
            f"splits: expected slides of all {len(classes)} classes in the training split, got none of class "
            f"{', '.join(lacking)}; allowed: at least one slide each; ingest more slides or change split_seed or the "
            "fractions"
        )


def _check_table(table: pa.Table, manifest: Manifest, place: str) -> None:
    """Check that labels are those of classes, and agree with class names."""
    rows = table.to_pylist()
    pairs = Counter((row["label"], row.get(CLASS)) for row in rows)
    name_of: dict[int, str | None] = {}
    for (label, name), _ in pairs.most_common():
        if name is None or name not in name_of.values():
            name_of.setdefault(label, name)
    count = max(len(manifest.classes), len({name for _, name in pairs}))
    outside = [f"{row['label']} of slide {row['slide_id']}" for row in rows if not 0 <= row["label"] < count]
    if outside:
        raise InputError(
            f"{place}: expected labels of {count} classes, got {changes_text(outside)}; allowed: 0 to {count - 1}; "
            "make the file anew"
        )
    unlike = [
        f"{row[CLASS]} for label {row['label']} of slide {row['slide_id']}"
        for row in rows
        if row.get(CLASS) != name_of.get(row["label"])
    ]
    if unlike:
        raise InputError(
            f"{place}: expected the class of the other slides with a label, got {changes_text(unlike)}; allowed: "
            f"{', '.join(f'{name} for {label}' for label, name in sorted(name_of.items()))}; make the file anew"
        )


def _changes(rows: Rows, classes: Mapping[int, str], manifest: Manifest, _: TargetConfig) -> list[str]:
    return label_changes(rows, classes, manifest)


def _renewal(splits: pa.Table, classes: Sequence[str], manifest: Manifest, _: TargetConfig) -> dict[str, pa.Array]:
    """Patients and labels of the manifest.

    A label is the place of its class in ``classes``, whatever their order in the manifest.

    Raises:
        InputError: the manifest lacks a slide, or a slide has a class that is none of ``classes``.
    """
    slides = [manifest[slide_id] for slide_id in splits["slide_id"].to_pylist()]
    names = [manifest.class_of(slide) for slide in slides]
    unknown = [
        f"slide {slide.slide_id} is {name}" for slide, name in zip(slides, names, strict=True) if name not in classes
    ]
    if unknown:
        raise InputError(
            f"labels_from: expected classes that the run was trained on with the manifest's labels, got others "
            f"({changes_text(unknown)}); allowed: {', '.join(classes)}; take those of the run, or train again in "
            "another folder"
        )
    return {
        "patient_id": pa.array([slide.patient_id for slide in slides], pa.string()),
        "label": pa.array([classes.index(name) for name in names], pa.int64()),
        CLASS: pa.array(names, pa.string()),
    }


CLASSIFICATION = CohortTarget(
    title="labels",
    columns={"label": "an integer"},
    notes=(CLASS,),
    table=_table,
    strata=_strata,
    stratum=_stratum,
    check_manifest=_check_manifest,
    check_table=_check_table,
    check_splits=_check_splits,
    changes=_changes,
    renewal=_renewal,
)
