"""Survival in the room of cohorts: follow-up, its checks, and strata.

Time and event stand in columns of the manifest that the run names. Values are of the patient: slides without any take
those of the patient's other slides; a patient without is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from milcore.cohort.label_changes import changes_text, value_changes
from milcore.cohort.manifest import Manifest
from milcore.cohort.table import is_infinite, is_missing, number_text, plain_number
from milcore.cohort.target import CohortTarget, Rows
from milcore.config import TargetConfig, TrainConfig
from milcore.errors import InputError
from milcore.metrics.survival.discrete_hazard import cut_points
from milcore.metrics.survival.outcome import Outcome
from milcore.runtime.progress import log_line

# groups of patients with an event, and of others, by time
MOST_QUANTILES = 4


class FollowUp(NamedTuple):
    """Follow-up of a patient.

    Args:
        time: to the event or to censoring, above 0, in the unit of the manifest.
        event: 1 where the event came at that time, 0 where the patient was censored.
    """

    time: float
    event: int


def follow_ups(manifest: Manifest, target: TargetConfig) -> dict[str, FollowUp]:
    """Follow-up of each patient that has one.

    Args:
        manifest: with the columns that the target names.
        target: names of the columns.

    Raises:
        InputError: a column is missing, a value is none of its kind, or slides of a patient disagree.
    """
    times, events = (manifest.column(name) for name in (target.time, target.event))
    problems: list[str] = []
    of_patient: dict[str, tuple[set[float], set[float]]] = {}
    for slide, time, event in zip(manifest.slides, times, events, strict=True):
        values = of_patient.setdefault(slide.patient_id, (set(), set()))
        problem = _time_problem(time) or _event_problem(event)
        if problem is not None:
            problems.append(f"slide {slide.slide_id}: {problem}")
            continue
        for text, of_kind in zip((time, event), values, strict=True):
            if not is_missing(text):
                of_kind.add(plain_number(text) or 0.0)
    problems = problems or list(_disagreements(of_patient, target))
    if problems:
        raise InputError(
            f"manifest columns {target.time}, {target.event}: expected one follow-up per patient, got "
            f"{len(problems)} problem(s): {changes_text(problems)}; allowed: a time above 0 and an event of 0 or 1, or "
            "neither; mend the manifest and ingest or import again"
        )
    return {
        patient: FollowUp(min(of_time), int(min(of_event)))
        for patient, (of_time, of_event) in of_patient.items()
        if of_time and of_event
    }


def _time_problem(text: str) -> str | None:
    """Problem of a time.

    0 is refused: it is mostly a missing follow-up, or an event before the study, which no model can rank.
    """
    if not is_infinite(text) and (is_missing(text) or (plain_number(text) or 0.0) > 0.0):
        return None
    return f"time {number_text(text)}"


def _event_problem(text: str) -> str | None:
    return None if is_missing(text) or plain_number(text) in {0.0, 1.0} else f"event {text!r}"


def _disagreements(of_patient: Mapping[str, tuple[set[float], set[float]]], target: TargetConfig) -> Iterable[str]:
    """Patients whose slides have several values of a column."""
    for patient, values in of_patient.items():
        for name, of_kind in zip((target.time, target.event), values, strict=True):
            if len(of_kind) > 1:
                yield f"patient {patient}: {name} {' and '.join(f'{value:g}' for value in sorted(of_kind))}"


def _table(manifest: Manifest, target: TargetConfig) -> pa.Table:
    of_patient = follow_ups(manifest, target)
    slides = [slide for slide in manifest.slides if slide.patient_id in of_patient]
    return pa.table(
        {
            "slide_id": pa.array([slide.slide_id for slide in slides], pa.string()),
            "patient_id": pa.array([slide.patient_id for slide in slides], pa.string()),
            "time": pa.array([of_patient[slide.patient_id].time for slide in slides], pa.float64()),
            "event": pa.array([of_patient[slide.patient_id].event for slide in slides], pa.int64()),
        }
    )


def _strata(rows: Rows, smallest: int) -> dict[str, int]:
    """Event, and quantile of time among the patients of that event.

    At most four, each of enough patients.
    """
    of_patient = {row["patient_id"]: FollowUp(row["time"], row["event"]) for row in rows}
    stratum_of: dict[str, int] = {}
    for event in (0, 1):
        patients = sorted(
            (patient for patient, follow_up in of_patient.items() if follow_up.event == event),
            key=lambda patient: (of_patient[patient].time, patient),
        )
        quantiles = max(1, min(MOST_QUANTILES, len(patients) // smallest))
        for place, patient in enumerate(patients):
            stratum_of[patient] = MOST_QUANTILES * event + place * quantiles // len(patients)
    return stratum_of


def _stratum(stratum: int) -> str:
    return f"event {stratum // MOST_QUANTILES}"


def _check_manifest(manifest: Manifest, target: TargetConfig) -> None:
    """Check the follow-up of all patients, and tell of those who have none.

    Raises:
        InputError: as ``follow_ups``, or no patient has an event.
    """
    of_patient = follow_ups(manifest, target)
    patients = dict.fromkeys(slide.patient_id for slide in manifest.slides)
    without = [patient for patient in patients if patient not in of_patient]
    if not any(follow_up.event for follow_up in of_patient.values()):
        raise InputError(
            f"manifest column {target.event}: expected patients with an event, got none of {len(of_patient)}; allowed: "
            "1 in some; without an event nothing can be learned"
        )
    if without:
        log_line(
            f"left out: {len(without)} of {len(patients)} patients without {target.time} or {target.event} "
            f"({changes_text(without)})"
        )


def _check_table(_: pa.Table, __: Manifest, ___: str) -> None:
    """Check nothing more: ``changes`` compares every value with the manifest's."""


def _check_splits(splits: pa.Table, _: Manifest, train: TrainConfig) -> None:
    """Check that training has an event, and a bag is a patient.

    Raises:
        InputError: it has none, or a patient has several slides that are to be bags of their own.
    """
    rows = splits.to_pylist()
    training = {row["patient_id"]: row["event"] for row in rows if row["split"] == "train"}
    if not any(training.values()):
        raise InputError(
            f"splits: expected an event in the training split, got none of {len(training)} patients; allowed: at least "
            "one; change split_seed or the fractions"
        )
    slides_of: dict[str, int] = {}
    for row in rows:
        slides_of[row["patient_id"]] = slides_of.get(row["patient_id"], 0) + 1
    several = [f"{patient} has {count}" for patient, count in slides_of.items() if count > 1]
    if train.bag == "slide" and several:
        raise InputError(
            f"bag: expected patient where patients have several slides with a survival target, got slide "
            f"({changes_text(several)}); allowed: patient; take --bag patient"
        )


def _check_hazard_splits(splits: pa.Table, manifest: Manifest, train: TrainConfig) -> None:
    """Check also that the events of training end the intervals of the settings.

    Raises:
        InputError: as ``_check_splits``, or they end fewer.
    """
    _check_splits(splits, manifest, train)
    rows = [row for row in splits.to_pylist() if row["split"] == "train"]
    of_patient = {row["patient_id"]: (row["time"], row["event"]) for row in rows}
    cut_points(Outcome.of(*np.array(list(of_patient.values())).T), train.hazard_intervals)


def _changes(rows: Rows, _: Mapping[int, str], manifest: Manifest, target: TargetConfig) -> list[str]:
    """Differences of patients and follow-up between rows of splits and the manifest.

    A manifest that has no such columns any more, or a fault in them, is one difference.
    """
    try:
        of_patient = follow_ups(manifest, target)
    except InputError as error:
        return [error.line]
    return value_changes(
        rows,
        manifest,
        lambda row: FollowUp(row["time"], row["event"]),
        lambda slide: of_patient.get(slide.patient_id),
        _text,
    )


def _text(follow_up: FollowUp | None) -> str:
    return "without follow-up" if follow_up is None else f"time {follow_up.time:g}, event {follow_up.event}"


def _renewal(splits: pa.Table, _: Sequence[str], manifest: Manifest, target: TargetConfig) -> dict[str, pa.Array]:
    """Patients and follow-up of the manifest.

    Raises:
        InputError: the manifest lacks a slide, or a patient has no follow-up in it.
    """
    of_patient = follow_ups(manifest, target)
    patients = [manifest[slide_id].patient_id for slide_id in splits["slide_id"].to_pylist()]
    without = sorted({patient for patient in patients if patient not in of_patient})
    if without:
        raise InputError(
            f"labels_from: expected follow-up of every patient of the run in the manifest, got none of "
            f"{changes_text(without)}; allowed: {target.time} and {target.event} of each; fill them, or take those of "
            "the run"
        )
    return {
        "patient_id": pa.array(patients, pa.string()),
        "time": pa.array([of_patient[patient].time for patient in patients], pa.float64()),
        "event": pa.array([of_patient[patient].event for patient in patients], pa.int64()),
    }


SURVIVAL_COX = CohortTarget(
    title="follow-up",
    columns={"time": "a number", "event": "an integer"},
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
SURVIVAL_HAZARD = SURVIVAL_COX._replace(check_splits=_check_hazard_splits)
