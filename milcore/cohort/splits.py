"""Training, validation and test splits of patients, and folds.

Patients are divided, never the slides of one; with ``split_by`` site, whole sites. The split is a function of the
manifest and ``SplitConfig`` alone. It is saved with the run and identified by its digest. Class names, and sites where
patients are divided, are saved too, but are no part of the digest, which earlier versions made without them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from milcore.cohort.manifest import Manifest, Slide, id_problem
from milcore.cohort.site_splits import (
    SITE,
    SPLIT_BY,
    check_patient_sites,
    check_sites_apart,
    fold_sites,
    is_by_site,
    part_name,
    slide_sites,
    split_sites,
    validation_sites,
)
from milcore.cohort.target import CohortTarget, Rows
from milcore.cohort.targets import COHORT_TARGETS
from milcore.config import SPLIT_NAMES, SplitBy, SplitConfig, Target, TargetConfig
from milcore.errors import InputError

COLUMNS = ("slide_id", "patient_id", "split")
# least patients of a stratum, where the target itself sets no strata
PATIENTS_PER_STRATUM = 10
CLASSES = TargetConfig()


def make_splits(manifest: Manifest, config: SplitConfig, target: TargetConfig = CLASSES) -> pa.Table:
    """Divide the patients of a manifest into splits, stratified by their target.

    A patient's label is the highest label among their slides. Where the manifest has a ``split`` for every slide, that
    is used.

    Args:
        manifest: of the slides.
        config: fractions and seed.
        target: whose columns stratify, and stand in the table.

    Returns:
        One row per slide: slide_id, patient_id, columns of the target, split, of classes class, site, split_by.

    Raises:
        InputError: some slides have a ``split`` and others not, or a patient, or a site, is in two splits.
    """
    given = [slide for slide in manifest.slides if slide.split is not None]
    if given and len(given) < len(manifest.slides):
        raise InputError(
            f"manifest column split: expected a value for every slide, got {len(given)} for {len(manifest.slides)} "
            f"slides; allowed: {', '.join(SPLIT_NAMES)}; fill or drop the column"
        )
    row = COHORT_TARGETS[target.target]
    table = _with_sites(row.table(manifest, target), manifest)
    if given:
        split_of = _manifest_splits(given)
    elif config.unit == "site":
        split_of = _site_splits(table, row, config)
    else:
        split_of = _random_splits(table, row, config)
    splits = [split_of[patient] for patient in table["patient_id"].to_pylist()]
    return _with_splits(table, splits, row, config.unit, "manifest column split" if given else "splits")


def splits_table(
    manifest: Manifest, split_of: Mapping[str, str], target: TargetConfig = CLASSES, unit: SplitBy = "patient"
) -> pa.Table:
    """A table of splits with patients, sites and the target's columns of a manifest.

    Args:
        manifest: has these slides.
        split_of: split by slide id, in the order of the rows.
        target: whose columns are taken; slides without a value are left out.
        unit: what the splits hold whole.

    Raises:
        InputError: a site is in two splits that are to hold sites whole.
    """
    row = COHORT_TARGETS[target.target]
    table = _with_sites(row.table(manifest, target), manifest)
    place_of = {slide_id: place for place, slide_id in enumerate(table["slide_id"].to_pylist())}
    kept = [slide_id for slide_id in split_of if slide_id in place_of]
    places = pa.array([place_of[slide_id] for slide_id in kept], pa.int64())
    return _with_splits(table.take(places), [split_of[slide_id] for slide_id in kept], row, unit)


def _with_sites(table: pa.Table, manifest: Manifest) -> pa.Table:
    site_of = slide_sites(manifest)
    sites = [site_of[slide_id] for slide_id in table["slide_id"].to_pylist()]
    return table.append_column(SITE, pa.array(sites, pa.string()))


def _with_splits(
    table: pa.Table, splits: list[str], target: CohortTarget, unit: SplitBy, place: str = "splits"
) -> pa.Table:
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    notes = {name: columns.pop(name) for name in (*target.notes, SITE)}
    units = {SPLIT_BY: pa.array([unit] * len(splits), pa.string())}
    with_splits = pa.table({**columns, "split": pa.array(splits, pa.string()), **notes, **units})
    if unit == "site":
        check_sites_apart(with_splits.to_pylist(), place)
    return with_splits


def _site_splits(table: pa.Table, target: CohortTarget, config: SplitConfig) -> dict[str, str]:
    """Split of each patient, by that of the patient's site."""
    rows = table.to_pylist()
    check_patient_sites(rows, "manifest column site")
    split_of = split_sites(rows, target, config)
    return {row["patient_id"]: split_of[row[SITE]] for row in rows}


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


def _random_splits(table: pa.Table, target: CohortTarget, config: SplitConfig) -> dict[str, str]:
    stratum_of = target.strata(table.to_pylist(), PATIENTS_PER_STRATUM)
    split_of: dict[str, str] = {}
    for stratum in sorted(set(stratum_of.values())):
        patients = _shuffled(stratum_of, stratum, [config.split_seed, stratum])
        split_of |= dict(zip(patients, _split_names(len(patients), config), strict=True))
    return split_of


def _split_names(patients: int, config: SplitConfig) -> list[str]:
    """Split names for a number of patients of one stratum.

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

    0 to K-1 for patients outside the test split, -1 for those in it. Folds are stratified as splits are and as equal in
    patients as can be. Where the splits hold sites whole, the folds do so too.

    Raises:
        InputError: a class, or an event, has fewer patients than there are folds, or is in one site only.
    """
    rows = [row for row in splits.to_pylist() if row["split"] != "test"]
    if is_by_site(splits):
        fold_of_site = fold_sites(rows, target_of(splits), config)
        fold_of = {row["patient_id"]: fold_of_site[row[SITE]] for row in rows}
    else:
        fold_of = _patient_folds(rows, target_of(splits), config)
    folds = [fold_of.get(row["patient_id"], -1) for row in splits.to_pylist()]
    return splits.append_column("fold", pa.array(folds, pa.int32()))


def _patient_folds(rows: Rows, target: CohortTarget, config: SplitConfig) -> dict[str, int]:
    stratum_of = target.strata(rows, max(PATIENTS_PER_STRATUM, config.folds))
    fold_of: dict[str, int] = {}
    for stratum in sorted(set(stratum_of.values())):
        patients = _shuffled(stratum_of, stratum, [config.split_seed, stratum, 1])
        if len(patients) < config.folds:
            name = target.stratum(stratum)
            kind = name.split()[0]
            raise InputError(
                f"folds: expected a patient of each {kind} in every fold, got {config.folds} folds for {len(patients)} "
                f"patients of {name} outside the test split; allowed: at most as many as the rarest {kind} has patients"
            )
        # each stratum starts at the fold after the last one dealt, which keeps the folds equal
        fold_of |= {patient: (len(fold_of) + index) % config.folds for index, patient in enumerate(patients)}
    return fold_of


def splits_of_fold(splits: pa.Table, fold: int, config: SplitConfig) -> pa.Table:
    """Training, validation and test split of one fold of cross-validation.

    The fold is the test split; validation has ``val_fraction`` of all patients, drawn from those outside the fold, and
    whole sites where the folds are of whole sites. Patients of the run's test split are left out.

    Args:
        splits: as ``add_folds`` returns it.
        fold: 0 to K-1.
        config: of ``splits``.
    """
    rows = [row for row in splits.to_pylist() if row["fold"] >= 0]
    test = {row["patient_id"] for row in rows if row["fold"] == fold}
    if is_by_site(splits):
        sites = validation_sites(rows, target_of(splits), fold, config)
        val = {row["patient_id"] for row in rows if row[SITE] in sites}
    else:
        val = _validation_patients(rows, target_of(splits), fold, config)
    split_of = {row["patient_id"]: "train" for row in rows} | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    table = pa.Table.from_pylist([{**row, "split": split_of[row["patient_id"]]} for row in rows])
    return table.drop_columns(["fold"])


def _validation_patients(rows: Rows, target: CohortTarget, fold: int, config: SplitConfig) -> set[str]:
    stratum_of = target.strata(rows, max(PATIENTS_PER_STRATUM, config.folds))
    test = {row["patient_id"] for row in rows if row["fold"] == fold}
    val: set[str] = set()
    for stratum in sorted(set(stratum_of.values())):
        patients = _shuffled(stratum_of, stratum, [config.split_seed, stratum, 2, fold])
        others = [patient for patient in patients if patient not in test]
        val |= set(others[: _patients_for(len(patients), config.val_fraction, limit=len(others) - 1)])
    return val


def _shuffled(stratum_of: Mapping[str, int], stratum: int, seed: list[int]) -> list[str]:
    """The patients of a stratum in random order."""
    patients = sorted(patient for patient, of_patient in stratum_of.items() if of_patient == stratum)
    return [patients[index] for index in np.random.default_rng(seed).permutation(len(patients))]


def target_of(splits: pa.Table) -> CohortTarget:
    """The target whose columns a table of splits has, classification without any."""
    rows = COHORT_TARGETS.values()
    return next((row for row in rows if set(row.columns) <= set(splits.column_names)), COHORT_TARGETS[CLASSES.target])


def check_splits(splits: pa.Table, place: str = "splits", target: Target | None = None) -> None:
    """Check a table of splits.

    Args:
        splits: columns slide_id, patient_id, those of the target, split; its notes, site, split_by and fold may be
            there too.
        place: where it comes from, for an error.
        target: that it must be of; None: as its columns say.

    Raises:
        InputError: a column is missing or of another type, a cell is empty, an id cannot name files, a split has
            another name, or a slide, a patient, or a site that splits hold whole, is there twice.
    """
    _check_columns(splits, place, target_of(splits) if target is None else COHORT_TARGETS[target])
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
        part = part_name(row)
        if split_of.setdefault(patient, part) != part:
            raise InputError(
                f"{place}: patient {patient!r}: expected one split, got {split_of[patient]!r} and {part!r} (slide "
                f"{slide_id!r}); allowed: any of {', '.join(SPLIT_NAMES)}"
            )
    if is_by_site(splits):
        check_sites_apart(splits.to_pylist(), place)


# kind of a column's values -> check of its type
_KINDS: dict[str, Callable[[pa.DataType], bool]] = {
    "string": pa.types.is_string,
    "an integer": pa.types.is_integer,
    "a number": pa.types.is_floating,
}


def _check_columns(splits: pa.Table, place: str, target: CohortTarget) -> None:
    first, second, last = COLUMNS
    of_sites = {SITE: "string"} if is_by_site(splits) else {}
    kinds = {first: "string", second: "string", **target.columns, last: "string", **of_sites}
    missing = [name for name in kinds if name not in splits.column_names]
    if missing:
        raise InputError(
            f"{place}: expected columns {', '.join(kinds)}, got no {', '.join(missing)}; allowed: further columns"
        )
    notes = {name: "string" for name in (*target.notes, SITE, SPLIT_BY) if name in splits.column_names}
    for name, wanted in (kinds | notes).items():
        column = splits[name]
        if not _KINDS[wanted](column.type):
            raise InputError(
                f"{place}: column {name}: expected type {wanted}, got {column.type}; allowed: {wanted}; make the file "
                "anew"
            )
        if column.null_count:
            raise InputError(
                f"{place}: column {name}: expected a value in every row, got {column.null_count} empty cells; fill "
                "them or make the file anew"
            )


def splits_with_labels(splits: pa.Table, classes: Sequence[str], manifest: Manifest, target: TargetConfig) -> pa.Table:
    """The same splits with patients, sites and values of the manifest.

    Args:
        splits: a row per slide.
        classes: as a model knows them.
        manifest: of all slides of ``splits``.
        target: whose columns are renewed.

    Raises:
        InputError: the manifest lacks a slide, or a value that the model knows, or a patient is in two splits or folds.
    """
    columns = dict(COHORT_TARGETS[target.target].renewal(splits, classes, manifest, target))
    site_of = slide_sites(manifest)
    columns[SITE] = pa.array([site_of[slide_id] for slide_id in splits["slide_id"].to_pylist()], pa.string())
    for place, name in enumerate(splits.column_names):
        if name in columns:
            splits = splits.set_column(place, name, columns[name])
    check_splits(splits, "labels_from manifest", target.target)
    return splits


def splits_digest(splits: pa.Table) -> str:
    """Sha256 of the rows in order of slide_id.

    Folds belong to it where there are any, and sites where these are whole.
    """
    sites = [SITE, SPLIT_BY] if is_by_site(splits) else []
    folds = ["fold"] if "fold" in splits.column_names else []
    columns = [*COLUMNS, *target_of(splits).columns, *folds, *sites]
    rows = sorted(splits.select(columns).to_pylist(), key=lambda row: str(row["slide_id"]))
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
