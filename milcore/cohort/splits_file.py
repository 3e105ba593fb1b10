"""Splits read from a file: a ``splits.parquet`` of a run or a sweep.

Only the split of each slide is taken from it; patients, labels and class names are those of the manifest. Where the
file has others, the split was made for another cohort, and is refused.
"""

from collections import Counter

import pyarrow as pa

from milcore.cohort.label_changes import changes_text, classes_of, label_changes
from milcore.cohort.manifest import Manifest
from milcore.cohort.splits import CLASS, COLUMNS, check_splits, splits_table
from milcore.errors import DamageError, InputError
from milcore.runtime import storage
from milcore.runtime.allow_list import check_uri
from milcore.runtime.progress import log_line

ALLOWED = "allowed: the splits.parquet of a run or a sweep"


def read_splits(uri: str, manifest: Manifest) -> pa.Table:
    """Splits of the manifest's slides in a file, in its order.

    Slides that the manifest lacks are left out and logged.

    Raises:
        InputError: there is no such file, it is no table of splits, or its labels or patients are not the manifest's.
    """
    place = f"splits in {uri}"
    table = _read_table(uri)
    check_splits(table, place)
    _check_classes(table, len(manifest.classes), place)
    rows = table.to_pylist()
    ids = {slide.slide_id for slide in manifest.slides}
    known = [row for row in rows if row["slide_id"] in ids]
    unknown = [row["slide_id"] for row in rows if row["slide_id"] not in ids]
    if unknown:
        log_line(f"{place}: {len(unknown)} slides are not in the manifest and are left out ({changes_text(unknown)})")
    changes = label_changes(known, classes_of(table, manifest.classes), manifest)
    if changes:
        raise InputError(
            f"{place}: expected the labels of the manifest, got others ({changes_text(changes)}); allowed: splits made "
            "for this manifest; ingest with the manifest, and positive class, that the splits were made for, or make "
            "them anew without splits"
        )
    return splits_table(manifest, {row["slide_id"]: row["split"] for row in known})


def _read_table(uri: str) -> pa.Table:
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
    return table.select([place for place, name in enumerate(table.column_names) if name in (*COLUMNS, CLASS)])


def _check_classes(table: pa.Table, count: int, place: str) -> None:
    """Check that labels are below ``count`` and agree with class names."""
    rows = table.to_pylist()
    pairs = Counter((row["label"], row.get(CLASS)) for row in rows)
    name_of: dict[int, str | None] = {}
    for (label, name), _ in pairs.most_common():
        if name is None or name not in name_of.values():
            name_of.setdefault(label, name)
    count = max(count, len({name for _, name in pairs}))
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
