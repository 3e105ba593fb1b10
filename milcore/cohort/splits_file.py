"""Splits read from a file: a ``splits.parquet`` of a run or a sweep.

Only the split of each slide is taken from it; patients, sites, labels and class names are those of the manifest. Where
the file has others, the split was made for another cohort, and is refused.
"""

import pyarrow as pa

from milcore.cohort.label_changes import changes_text, classes_of
from milcore.cohort.manifest import Manifest
from milcore.cohort.site_splits import SITE, SPLIT_BY, is_by_site
from milcore.cohort.splits import CLASSES, COLUMNS, check_splits, splits_table
from milcore.cohort.target import CohortTarget
from milcore.cohort.targets import COHORT_TARGETS
from milcore.config import SplitBy, TargetConfig
from milcore.errors import DamageError, InputError
from milcore.runtime import storage
from milcore.runtime.allow_list import check_uri
from milcore.runtime.progress import log_line

ALLOWED = "allowed: the splits.parquet of a run or a sweep"


def read_splits(uri: str, manifest: Manifest, target: TargetConfig = CLASSES, unit: SplitBy = "patient") -> pa.Table:
    """Splits of the manifest's slides in a file, in its order.

    Slides that the manifest lacks are left out and logged.

    Args:
        uri: of the file.
        manifest: of the slides.
        target: whose columns are compared.
        unit: what the splits are to hold whole; sites too where the file was made of whole sites.

    Raises:
        InputError: there is no such file, it is no table of splits, its labels or patients are not the manifest's, or
            a site is in two splits that are to hold sites whole.
    """
    place = f"splits in {uri}"
    of_cohort = COHORT_TARGETS[target.target]
    table = _read_table(uri, of_cohort)
    check_splits(table, place, target.target)
    of_cohort.check_table(table, manifest, place)
    rows = table.to_pylist()
    ids = {slide.slide_id for slide in manifest.slides}
    known = [row for row in rows if row["slide_id"] in ids]
    unknown = [row["slide_id"] for row in rows if row["slide_id"] not in ids]
    if unknown:
        log_line(f"{place}: {len(unknown)} slides are not in the manifest and are left out ({changes_text(unknown)})")
    changes = of_cohort.changes(known, classes_of(table, manifest.classes), manifest, target)
    if changes:
        raise InputError(
            f"{place}: expected the {of_cohort.title} of the manifest, got others ({changes_text(changes)}); allowed: "
            "splits made for this manifest; ingest with the manifest, and positive class, that the splits were made "
            "for, or make them anew without splits"
        )
    split_of = {row["slide_id"]: row["split"] for row in known}
    return splits_table(manifest, split_of, target, "site" if is_by_site(table) else unit)


def _read_table(uri: str, target: CohortTarget) -> pa.Table:
    check_uri(uri, "splits")
    try:
        data = storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"splits: expected a file, got nothing at {uri}; {ALLOWED}") from None
    try:
        table = storage.check_table(data, uri)
        table.validate(full=True)  # a text that is no UTF-8
    except (DamageError, pa.ArrowException):
        raise InputError(f"splits: expected Parquet at {uri}, got another or a damaged file; {ALLOWED}") from None
    # folds are made anew
    names = (*COLUMNS, *target.columns, *target.notes, SITE, SPLIT_BY)
    return table.select([place for place, name in enumerate(table.column_names) if name in names])
