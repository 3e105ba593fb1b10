"""Target in the room of cohorts: columns, checks, and strata of splits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from milcore.cohort.manifest import Manifest
from milcore.config import TargetConfig, TrainConfig

Rows = Iterable[Mapping[str, Any]]


class CohortTarget(NamedTuple):
    """Row of a target in the table of cohorts.

    Args:
        title: of what is predicted, for a person.
        columns: of ``splits.parquet`` that hold what is predicted, by name their kind; the digest covers them.
        notes: further columns of texts, which the digest does not cover.
        table: slide_id, patient_id, columns and notes of the slides that can be trained on, in manifest order.
        strata: stratum of each patient, from rows of slides; each has about as many patients as the number, or more.
        stratum: name of a stratum, for a person: its kind, and which.
        check_manifest: refuses a manifest that cannot be trained on.
        check_table: refuses values of a table of splits that are none of the manifest's kind; a place begins its error.
        check_splits: refuses splits that cannot be trained on.
        changes: differences between rows of splits, with class names by label, and the manifest, as texts.
        renewal: patients, columns and notes of the slides of a table of splits, as the manifest has them now.
    """

    title: str
    columns: dict[str, str]
    notes: tuple[str, ...]
    table: Callable[[Manifest, TargetConfig], pa.Table]
    strata: Callable[[Rows, int], dict[str, int]]
    stratum: Callable[[int], str]
    check_manifest: Callable[[Manifest, TargetConfig], None]
    check_table: Callable[[pa.Table, Manifest, str], None]
    check_splits: Callable[[pa.Table, Manifest, TrainConfig], None]
    changes: Callable[[Rows, Mapping[int, str], Manifest, TargetConfig], Sequence[str]]
    renewal: Callable[[pa.Table, Sequence[str], Manifest, TargetConfig], Mapping[str, pa.Array]]
