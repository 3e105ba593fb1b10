"""Who trains, who selects, who tests: a division of patients, never of slides.

The split is a function of the manifest and ``SplitConfig`` alone. It is saved with the run and named by its digest.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from milcore.cohort.manifest import Manifest, Slide
from milcore.config import SPLIT_NAMES, SplitConfig
from milcore.errors import InputError

COLUMNS = ("slide_id", "patient_id", "label", "split")


def make_splits(manifest: Manifest, config: SplitConfig) -> pa.Table:
    """Divide the patients of a manifest, stratified by label.

    A patient's label is the highest label among their slides. Where the manifest has a ``split`` for every slide, that
    is the split.

    Returns:
        One row per slide: slide_id, patient_id, label, split.

    Raises:
        InputError: some slides have a ``split`` and others not, or a patient stands in two of them.
    """
    given = [slide for slide in manifest.slides if slide.split is not None]
    if given and len(given) < len(manifest.slides):
        raise InputError(
            f"manifest column split: {len(given)} of {len(manifest.slides)} slides have one; "
            "allowed: all or none; fill or drop the column"
        )
    of_patient = _given_splits(given) if given else _drawn_splits(manifest, config)
    rows = [(s.slide_id, s.patient_id, s.label, of_patient[s.patient_id]) for s in manifest.slides]
    return pa.table({name: list(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)})


def _given_splits(slides: list[Slide]) -> dict[str, str]:
    of_patient: dict[str, str] = {}
    for slide in slides:
        split = of_patient.setdefault(slide.patient_id, str(slide.split))
        if split != slide.split:
            raise InputError(
                f"manifest column split: patient {slide.patient_id!r} stands in {split!r} and in {slide.split!r}; "
                "allowed: one split per patient"
            )
    return of_patient


def _drawn_splits(manifest: Manifest, config: SplitConfig) -> dict[str, str]:
    label_of = _labels_of_patients({"patient_id": s.patient_id, "label": s.label} for s in manifest.slides)
    of_patient: dict[str, str] = {}
    for label in sorted(set(label_of.values())):
        patients = _shuffled(label_of, label, [config.split_seed, label])
        of_patient |= dict(zip(patients, _allot(len(patients), config), strict=True))
    return of_patient


def _allot(patients: int, config: SplitConfig) -> list[str]:
    """Split names for so many patients of one label; test, then validation, keep at least one while train does too."""
    test = _share(patients, config.test_fraction, most=patients - 1)
    val = _share(patients, config.val_fraction, most=patients - 1 - test)
    return ["test"] * test + ["val"] * val + ["train"] * (patients - test - val)


def _share(patients: int, fraction: float, most: int) -> int:
    wanted = max(round(patients * fraction), 1 if fraction > 0 else 0)
    return max(min(wanted, most), 0)


def add_folds(splits: pa.Table, config: SplitConfig) -> pa.Table:
    """The split with a column fold: 0 to K-1 for the patients outside the test split, -1 for those of it.

    Folds are stratified by a patient's label, and as even as patients can be dealt.

    Raises:
        InputError: there are fewer patients of a class than folds.
    """
    label_of = _labels_of_patients(row for row in splits.to_pylist() if row["split"] != "test")
    fold_of: dict[str, int] = {}
    for label in sorted(set(label_of.values())):
        patients = _shuffled(label_of, label, [config.split_seed, label, 1])
        if len(patients) < config.folds:
            raise InputError(
                f"folds {config.folds}: class {label} has {len(patients)} patients outside the test split; allowed: at "
                "most as many folds as the rarest class has patients"
            )
        # going round from where the last class ended keeps the folds even
        fold_of |= {patient: (len(fold_of) + place) % config.folds for place, patient in enumerate(patients)}
    folds = [fold_of.get(row["patient_id"], -1) for row in splits.to_pylist()]
    return splits.append_column("fold", pa.array(folds, pa.int32()))


def splits_of_fold(splits: pa.Table, fold: int, config: SplitConfig) -> pa.Table:
    """What the model of a fold is trained, selected and tested on; patients of the run's test split are in no part.

    Tested on the fold, which it never sees before; selected on ``val_fraction`` of all patients, drawn from the others.

    Args:
        splits: as ``add_folds`` returns it.
        fold: 0 to K-1.
        config: with which it was made.
    """
    rows = [row for row in splits.to_pylist() if row["fold"] >= 0]
    label_of = _labels_of_patients(rows)
    left_out = {row["patient_id"] for row in rows if row["fold"] == fold}
    selects: set[str] = set()
    for label in sorted(set(label_of.values())):
        patients = _shuffled(label_of, label, [config.split_seed, label, 2, fold])
        others = [patient for patient in patients if patient not in left_out]
        selects |= set(others[: _share(len(patients), config.val_fraction, most=len(others) - 1)])
    part_of = dict.fromkeys(label_of, "train") | dict.fromkeys(selects, "val") | dict.fromkeys(left_out, "test")
    return pa.Table.from_pylist([{**row, "split": part_of[row["patient_id"]]} for row in rows]).select(list(COLUMNS))


def _labels_of_patients(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The highest label among each patient's slides."""
    label_of: dict[str, int] = {}
    for row in rows:
        label_of[row["patient_id"]] = max(row["label"], label_of.get(row["patient_id"], 0))
    return label_of


def _shuffled(label_of: Mapping[str, int], label: int, seed: list[int]) -> list[str]:
    """The patients of a label in random order."""
    patients = sorted(patient for patient, its in label_of.items() if its == label)
    return [patients[place] for place in np.random.default_rng(seed).permutation(len(patients))]


def check_splits(splits: pa.Table) -> None:
    """Refuse a table that is no split of patients.

    Raises:
        InputError: a column is missing, a split has another name, or a patient stands in two splits.
    """
    missing = [name for name in COLUMNS if name not in splits.column_names]
    if missing:
        raise InputError(f"splits: no column {', '.join(missing)}; allowed: {', '.join(COLUMNS)}")
    split_of: dict[str, str] = {}
    for row in splits.to_pylist():
        if row["split"] not in SPLIT_NAMES:
            raise InputError(
                f"splits: slide {row['slide_id']!r} has {row['split']!r}; allowed: {', '.join(SPLIT_NAMES)}"
            )
        if split_of.setdefault(row["patient_id"], row["split"]) != row["split"]:
            raise InputError(f"splits: patient {row['patient_id']!r} stands in two splits; allowed: one per patient")


def splits_digest(splits: pa.Table) -> str:
    """Sha256 over the rows in order of slide_id, their folds included where there are any."""
    columns = [*COLUMNS, *(["fold"] if "fold" in splits.column_names else [])]
    rows = sorted(splits.select(columns).to_pylist(), key=lambda row: str(row["slide_id"]))
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
