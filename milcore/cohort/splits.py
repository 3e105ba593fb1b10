"""Training, validation and test splits of patients, and folds.

Patients are divided, never the slides of one. The split is a function of the manifest and ``SplitConfig`` alone. It is
saved with the run and identified by its digest. The class names are saved too, but are no part of the digest, which
earlier versions made without them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from milcore.cohort.manifest import Manifest, Slide, id_problem
from milcore.config import SPLIT_NAMES, SplitConfig
from milcore.errors import InputError

COLUMNS = ("slide_id", "patient_id", "label", "split")
CLASS = "class"


def make_splits(manifest: Manifest, config: SplitConfig) -> pa.Table:
    """Divide the patients of a manifest into splits, stratified by label.

    A patient's label is the highest label among their slides. Where the manifest has a ``split`` for every slide, that
    is used.

    Returns:
        One row per slide: slide_id, patient_id, label, split, class.

    Raises:
        InputError: some slides have a ``split`` and others not, or a patient is in two splits.
    """
    given = [slide for slide in manifest.slides if slide.split is not None]
    if given and len(given) < len(manifest.slides):
        raise InputError(
            f"manifest column split: expected a value for every slide, got {len(given)} for {len(manifest.slides)} "
            f"slides; allowed: {', '.join(SPLIT_NAMES)}; fill or drop the column"
        )
    split_of = _manifest_splits(given) if given else _random_splits(manifest, config)
    return splits_table(manifest, {slide.slide_id: split_of[slide.patient_id] for slide in manifest.slides})


def splits_table(manifest: Manifest, split_of: Mapping[str, str]) -> pa.Table:
    """A table of splits with patients, labels and class names of a manifest.

    Args:
        manifest: has these slides.
        split_of: split by slide id, in the order of the rows.
    """
    slides = [manifest[slide_id] for slide_id in split_of]
    return pa.table(
        {
            "slide_id": pa.array(split_of, pa.string()),
            "patient_id": pa.array([slide.patient_id for slide in slides], pa.string()),
            "label": pa.array([slide.label for slide in slides], pa.int64()),
            "split": pa.array(split_of.values(), pa.string()),
            CLASS: pa.array([manifest.classes[slide.label] for slide in slides], pa.string()),
        }
    )


def _manifest_splits(slides: list[Slide]) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for slide in slides:
        split = split_of.setdefault(slide.patient_id, str(slide.split))
        if split != slide.split:
            raise InputError(
                f"manifest column split: expected one split per patient, got {split!r} and {slide.split!r} for patient "
                f"{slide.patient_id!r}; allowed: any of {', '.join(SPLIT_NAMES)}"
            )
    return split_of


def _random_splits(manifest: Manifest, config: SplitConfig) -> dict[str, str]:
    label_of = _labels_of_patients({"patient_id": s.patient_id, "label": s.label} for s in manifest.slides)
    split_of: dict[str, str] = {}
    for label in sorted(set(label_of.values())):
        patients = _shuffled(label_of, label, [config.split_seed, label])
        split_of |= dict(zip(patients, _split_names(len(patients), config), strict=True))
    return split_of


def _split_names(patients: int, config: SplitConfig) -> list[str]:
    """Split names for a number of patients of one label.

    Training has at least one patient; then test and validation, in this order, have at least one while
    patients last, where their fraction is above 0.
    """
    test = _patients_for(patients, config.test_fraction, limit=patients - 1)
    val = _patients_for(patients, config.val_fraction, limit=patients - 1 - test)
    return ["test"] * test + ["val"] * val + ["train"] * (patients - test - val)


def _patients_for(patients: int, fraction: float, limit: int) -> int:
    wanted = max(round(patients * fraction), 1 if fraction > 0 else 0)
    return max(min(wanted, limit), 0)


def add_folds(splits: pa.Table, config: SplitConfig) -> pa.Table:
    """Add a column fold to a split.

    0 to K-1 for patients outside the test split, -1 for those in it. Folds are stratified by a patient's label and as
    equal in patients as can be.

    Raises:
        InputError: a class has fewer patients than there are folds.
    """
    label_of = _labels_of_patients(row for row in splits.to_pylist() if row["split"] != "test")
    fold_of: dict[str, int] = {}
    for label in sorted(set(label_of.values())):
        patients = _shuffled(label_of, label, [config.split_seed, label, 1])
        if len(patients) < config.folds:
            raise InputError(
                f"folds: expected a patient of each class in every fold, got {config.folds} folds for {len(patients)} "
                f"patients of class {label} outside the test split; allowed: at most as many as the rarest class has "
                "patients"
            )
        # each class starts at the fold after the last one dealt, which keeps the folds equal
        fold_of |= {patient: (len(fold_of) + index) % config.folds for index, patient in enumerate(patients)}
    folds = [fold_of.get(row["patient_id"], -1) for row in splits.to_pylist()]
    return splits.append_column("fold", pa.array(folds, pa.int32()))


def splits_of_fold(splits: pa.Table, fold: int, config: SplitConfig) -> pa.Table:
    """Training, validation and test split of one fold of cross-validation.

    The fold is the test split; validation has ``val_fraction`` of all patients, drawn from those outside the fold.
    Patients of the run's test split are left out.

    Args:
        splits: as ``add_folds`` returns it.
        fold: 0 to K-1.
        config: of ``splits``.
    """
    rows = [row for row in splits.to_pylist() if row["fold"] >= 0]
    label_of = _labels_of_patients(rows)
    test = {row["patient_id"] for row in rows if row["fold"] == fold}
    val: set[str] = set()
    for label in sorted(set(label_of.values())):
        patients = _shuffled(label_of, label, [config.split_seed, label, 2, fold])
        others = [patient for patient in patients if patient not in test]
        val |= set(others[: _patients_for(len(patients), config.val_fraction, limit=len(others) - 1)])
    split_of = dict.fromkeys(label_of, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    table = pa.Table.from_pylist([{**row, "split": split_of[row["patient_id"]]} for row in rows])
    return table.drop_columns(["fold"])


def _labels_of_patients(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The highest label among each patient's slides."""
    label_of: dict[str, int] = {}
    for row in rows:
        label_of[row["patient_id"]] = max(row["label"], label_of.get(row["patient_id"], 0))
    return label_of


def _shuffled(label_of: Mapping[str, int], label: int, seed: list[int]) -> list[str]:
    """The patients of a label in random order."""
    patients = sorted(patient for patient, patient_label in label_of.items() if patient_label == label)
    return [patients[index] for index in np.random.default_rng(seed).permutation(len(patients))]


def check_splits(splits: pa.Table, place: str = "splits") -> None:
    """Check a table of splits.

    Args:
        splits: columns slide_id, patient_id, label, split; class and fold may be there too.
        place: where it comes from, for an error.

    Raises:
        InputError: a column is missing or of another type, a cell is empty, an id cannot name files, a split has
            another name, or a slide or a patient is there twice.
    """
    _check_columns(splits, place)
    slides: set[str] = set()
    split_of: dict[str, str] = {}
    for row in splits.to_pylist():
        slide_id, patient, split = row["slide_id"], row["patient_id"], row["split"]
        problem = id_problem(slide_id)
        if problem is not None:
            raise InputError(f"{place}: {problem}")
        if split not in SPLIT_NAMES:
            raise InputError(
                f"{place}: slide {slide_id!r}: expected the name of a split, got {split!r}; allowed: "
                f"{', '.join(SPLIT_NAMES)}"
            )
        if slide_id in slides:
            raise InputError(
                f"{place}: slide {slide_id!r}: expected one row, got several; allowed: each slide once; drop the others"
            )
        slides.add(slide_id)
        part = split if row.get("fold") is None else f"{split}, fold {row['fold']}"
        if split_of.setdefault(patient, part) != part:
            raise InputError(
                f"{place}: patient {patient!r}: expected one split, got {split_of[patient]!r} and {part!r} (slide "
                f"{slide_id!r}); allowed: any of {', '.join(SPLIT_NAMES)}"
            )


def _check_columns(splits: pa.Table, place: str) -> None:
    missing = [name for name in COLUMNS if name not in splits.column_names]
    if missing:
        raise InputError(
            f"{place}: expected columns {', '.join(COLUMNS)}, got no {', '.join(missing)}; allowed: further columns"
        )
    for name in (*COLUMNS, *([CLASS] if CLASS in splits.column_names else [])):
        column, wanted = splits[name], "an integer" if name == "label" else "string"
        if not (pa.types.is_integer(column.type) if name == "label" else pa.types.is_string(column.type)):
            raise InputError(
                f"{place}: column {name}: expected type {wanted}, got {column.type}; allowed: {wanted}; make the file "
                "anew"
            )
        if column.null_count:
            raise InputError(
                f"{place}: column {name}: expected a value in every row, got {column.null_count} empty cells; fill "
                "them or make the file anew"
            )


def splits_digest(splits: pa.Table) -> str:
    """Sha256 of the rows in order of slide_id, with folds where there are any."""
    columns = [*COLUMNS, *(["fold"] if "fold" in splits.column_names else [])]
    rows = sorted(splits.select(columns).to_pylist(), key=lambda row: str(row["slide_id"]))
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
