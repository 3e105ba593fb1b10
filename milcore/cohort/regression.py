"""Regression in the room of cohorts: values of slides, checks, and strata by quantile.

The numbers stand in a column of the manifest that the run names. A slide without one is left out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from milcore.cohort.label_changes import changes_text, value_changes
from milcore.cohort.manifest import Manifest
from milcore.cohort.table import is_infinite, is_missing, number_text, plain_number
from milcore.cohort.target import CohortTarget, Rows
from milcore.config import TargetConfig, TrainConfig
from milcore.errors import InputError
from milcore.metrics.regression.scale import target_scale
from milcore.runtime.progress import log_line

# groups of patients by value
MOST_QUANTILES = 4


def slide_values(manifest: Manifest, target: TargetConfig) -> dict[str, float]:
    """Value of each slide that has one, by its id.

    Args:
        manifest: with the column that the target names.
        target: name of the column.

    Raises:
        InputError: the column is missing, or a value is no finite number.
    """
    texts = {
        slide.slide_id: text
        for slide, text in zip(manifest.slides, manifest.column(target.target_column), strict=True)
        if is_infinite(text) or not is_missing(text)
    }
    numbers = {slide_id: plain_number(text) for slide_id, text in texts.items()}
    problems = [f"slide {name}: {number_text(texts[name])}" for name, number in numbers.items() if number is None]
    if problems:
        raise InputError(
            f"manifest column {target.target_column}: expected a number, got {len(problems)} problem(s): "
            f"{changes_text(problems)}; allowed: finite numbers, or nothing; mend the manifest and ingest or import "
            "again"
        )
    return {slide_id: number for slide_id, number in numbers.items() if number is not None}


def check_patient_values(rows: Rows) -> None:
    """Check that all slides of a patient have one value.

    Args:
        rows: of slides, with patient and value.

    Raises:
        InputError: a patient has several.
    """
    values: dict[str, set[float]] = {}
    for row in rows:
        values.setdefault(row["patient_id"], set()).add(row["value"])
    several = [
        f"patient {patient}: {' and '.join(f'{value:g}' for value in sorted(of_patient))}"
        for patient, of_patient in values.items()
        if len(of_patient) > 1
    ]
    if several:
        raise InputError(
            f"bag: expected slides of one value per patient where a patient is a bag, got several "
            f"({changes_text(several)}); allowed: one value; give every slide the patient's, or take bag slide"
        )


def _table(manifest: Manifest, target: TargetConfig) -> pa.Table:
    values = slide_values(manifest, target)
    slides = [slide for slide in manifest.slides if slide.slide_id in values]
    return pa.table(
        {
            "slide_id": pa.array([slide.slide_id for slide in slides], pa.string()),
            "patient_id": pa.array([slide.patient_id for slide in slides], pa.string()),
            "value": pa.array([values[slide.slide_id] for slide in slides], pa.float64()),
        }
    )


def _strata(rows: Rows, smallest: int) -> dict[str, int]:
    """Quantile of each patient's mean value; at most four, each of enough patients."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["patient_id"], []).append(row["value"])
    patients = sorted(values, key=lambda patient: (float(np.mean(values[patient])), patient))
    quantiles = max(1, min(MOST_QUANTILES, len(patients) // smallest))
    return {patient: place * quantiles // len(patients) for place, patient in enumerate(patients)}


def _stratum(stratum: int) -> str:
    return f"quantile {stratum + 1}"


def _check_manifest(manifest: Manifest, target: TargetConfig) -> None:
    """Check the values of all slides, and tell of slides that have none.

    Raises:
        InputError: as ``slide_values``, or there are fewer than two different values.
    """
    values = slide_values(manifest, target)
    if len(set(values.values())) < 2:
        got = f"only {next(iter(values.values())):g} in {len(values)}" if values else "none in any"
        raise InputError(
            f"manifest column {target.target_column}: expected numbers that differ, got {got} of "
            f"{len(manifest.slides)} slides; allowed: two values or more; a constant cannot be learned"
        )
    without = [slide.slide_id for slide in manifest.slides if slide.slide_id not in values]
    if without:
        log_line(
            f"left out: {len(without)} of {len(manifest.slides)} slides without {target.target_column} "
            f"({changes_text(without)})"
        )


def _check_table(_: pa.Table, __: Manifest, ___: str) -> None:
    """Check nothing more: ``changes`` compares every value with the manifest's."""


def _check_splits(splits: pa.Table, _: Manifest, train: TrainConfig) -> None:
    """Check that training values differ, and a patient that is a bag has one.

    Raises:
        InputError: they do not, or a patient has several.
    """
    rows = splits.to_pylist()
    if train.bag == "patient":
        check_patient_values(rows)
    training = {row[f"{train.bag}_id"]: row["value"] for row in rows if row["split"] == "train"}
    target_scale(np.array(list(training.values()), np.float64))


def _changes(rows: Rows, _: Mapping[int, str], manifest: Manifest, target: TargetConfig) -> list[str]:
    """Differences of patients and values between rows of splits and the manifest.

    A manifest that has no such column any more, or a fault in it, is one difference.
    """
    try:
        values = slide_values(manifest, target)
    except InputError as error:
        return [error.line]
    return value_changes(
        rows, manifest, lambda row: float(row["value"]), lambda slide: values.get(slide.slide_id), _text
    )


def _text(value: float | None) -> str:
    return "without a value" if value is None else f"{value:g}"


def _renewal(splits: pa.Table, _: Sequence[str], manifest: Manifest, target: TargetConfig) -> dict[str, pa.Array]:
    """Patients and values of the manifest.

    Raises:
        InputError: the manifest lacks a slide, or a slide has no value in it.
    """
    values, slide_ids = slide_values(manifest, target), splits["slide_id"].to_pylist()
    patients = [manifest[slide_id].patient_id for slide_id in slide_ids]
    without = [slide_id for slide_id in slide_ids if slide_id not in values]
    if without:
        raise InputError(
            f"labels_from: expected a value of every slide of the run in the manifest, got none of "
            f"{changes_text(without)}; allowed: {target.target_column} of each; fill it, or take those of the run"
        )
    return {
        "patient_id": pa.array(patients, pa.string()),
        "value": pa.array([values[slide_id] for slide_id in slide_ids], pa.float64()),
    }


REGRESSION = CohortTarget(
    title="values",
    columns={"value": "a number"},
    notes=(),
    table=_table,
    strata=_strata,
    stratum=_stratum,
    check_manifest=_check_manifest,
    check_table=_check_table,
    check_splits=_check_splits,
    changes=_changes,
    renewal=_renewal,
)
