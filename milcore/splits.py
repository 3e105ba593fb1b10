"""Who trains, who selects, who tests: a division of patients, never of slides.

The split is a function of the manifest and ``SplitConfig`` alone. It is saved with the run and named by its digest.
"""

import hashlib
import json

import numpy as np
import pyarrow as pa

from milcore.config import SPLIT_NAMES, SplitConfig
from milcore.errors import InputError
from milcore.manifest import Manifest, Slide

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
    label_of: dict[str, int] = {}
    for slide in manifest.slides:
        label_of[slide.patient_id] = max(slide.label, label_of.get(slide.patient_id, 0))
    of_patient: dict[str, str] = {}
    for label in sorted(set(label_of.values())):
        patients = sorted(patient for patient, its in label_of.items() if its == label)
        order = np.random.default_rng([config.split_seed, label]).permutation(len(patients))
        for place, split in zip(order, _allot(len(patients), config), strict=True):
            of_patient[patients[place]] = split
    return of_patient


def _allot(patients: int, config: SplitConfig) -> list[str]:
    """Split names for so many patients of one label; test, then validation, keep at least one while train does too."""
    test = _share(patients, config.test_fraction, most=patients - 1)
    val = _share(patients, config.val_fraction, most=patients - 1 - test)
    return ["test"] * test + ["val"] * val + ["train"] * (patients - test - val)


def _share(patients: int, fraction: float, most: int) -> int:
    wanted = max(round(patients * fraction), 1 if fraction > 0 else 0)
    return max(min(wanted, most), 0)


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
    """Sha256 over the rows in order of slide_id."""
    rows = sorted(splits.select(list(COLUMNS)).to_pylist(), key=lambda row: str(row["slide_id"]))
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
