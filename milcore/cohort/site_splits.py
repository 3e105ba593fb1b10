"""Splits and folds of whole sites: no site lies in two of them.

A site is where slides come from: a hospital, a laboratory, a scanner. The classes, or patients with an event and
censored ones, have alike shares everywhere (``site_division.py``).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from milcore.cohort.label_changes import changes_text
from milcore.cohort.manifest import Manifest
from milcore.cohort.site_division import SiteDivision, divide_sites
from milcore.cohort.target import CohortTarget
from milcore.config import SPLIT_NAMES, SplitConfig
from milcore.errors import InputError
from milcore.runtime.progress import log_line

# columns of a table of splits
SITE = "site"
SPLIT_BY = "split_by"
Row = Mapping[str, Any]
ONE_SITE = "give every patient a site, or take split_by patient"


def slide_sites(manifest: Manifest) -> dict[str, str]:
    """Site of each slide; empty where unknown.

    A slide without one has that of the patient's other slides, where these have one.
    """
    of_patient = patient_sites((slide.patient_id, slide.site) for slide in manifest.slides)
    only = {patient: next(iter(sites)) for patient, sites in of_patient.items() if len(sites) == 1}
    return {slide.slide_id: slide.site or only.get(slide.patient_id, "") for slide in manifest.slides}


def patient_sites(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """The sites that are known of each patient.

    Args:
        pairs: patient and site of each slide.
    """
    of_patient: dict[str, set[str]] = {}
    for patient, site in pairs:
        of_patient.setdefault(patient, set()).update({site} - {""})
    return of_patient


def is_by_site(splits: pa.Table) -> bool:
    """True where splits hold whole sites; those of earlier versions do not."""
    return SPLIT_BY in splits.column_names and "site" in splits[SPLIT_BY].to_pylist()


def check_patient_sites(rows: Sequence[Row], place: str) -> None:
    """Check that each patient is of one site.

    Raises:
        InputError: a patient has none, or several.
    """
    of_patient = patient_sites((row["patient_id"], row[SITE]) for row in rows)
    without = [patient for patient, sites in of_patient.items() if not sites]
    if without:
        raise InputError(
            f"{place}: expected a site of every patient with split_by site, got none of {len(without)} of "
            f"{len(of_patient)} ({changes_text(without)}); allowed: a name in column site; {ONE_SITE}"
        )
    several = [f"{patient}: {', '.join(sorted(sites))}" for patient, sites in of_patient.items() if len(sites) > 1]
    if several:
        raise InputError(
            f"{place}: expected one site per patient with split_by site, got several of {len(several)} "
            f"({changes_text(several)}); allowed: the same on all slides of a patient; mend the column, or take "
            "split_by patient"
        )


def split_sites(rows: Sequence[Row], target: CohortTarget, config: SplitConfig) -> dict[str, str]:
    """Split of each site; each split whose fraction is above 0 has a site.

    Args:
        rows: of slides, each with patient and site.
        target: whose classes have alike shares.
        config: fractions and seed.

    Raises:
        InputError: there are too few sites.
    """
    fractions = {"train": 1.0 - config.val_fraction - config.test_fraction} | {
        name: fraction
        for name, fraction in (("val", config.val_fraction), ("test", config.test_fraction))
        if fraction > 0.0
    }
    return _divide(rows, target, fractions, [config.split_seed])


def fold_sites(rows: Sequence[Row], target: CohortTarget, config: SplitConfig) -> dict[str, int]:
    """Fold of each site.

    Args:
        rows: of slides outside the test split, each with patient and site.
        target: whose classes have alike shares.
        config: number of folds, or one for each site; seed.

    Raises:
        InputError: there are too few sites, or a class is in one fold only.
    """
    names, counts = _counts(rows, target, [config.split_seed, 1])
    folds = len(names) if config.leave_one_site_out else config.folds
    _check_strata(rows, target)
    if not 2 <= folds <= len(names):
        raise InputError(
            f"folds: expected at most one for each site outside the test split, and 2 or more, got {folds} folds of "
            f"{len(names)} site(s) ({changes_text(sorted(names))}); allowed: 2 to {len(names)}; take fewer folds, or "
            "test_fraction 0"
        )
    if config.leave_one_site_out:
        return {site: fold for fold, site in enumerate(sorted(names))}
    division = divide_sites(counts, [1.0 / folds] * folds)
    if division is None:
        raise InputError(
            f"folds: expected patients of every {_kind(target)} outside each fold, got no such {folds} folds of "
            f"{len(names)} whole sites; allowed: fewer folds, or split_by patient"
        )
    _log(f"{len(names)} sites in {folds} folds", division)
    return dict(zip(names, division.part.tolist(), strict=True))


def validation_sites(rows: Sequence[Row], target: CohortTarget, fold: int, config: SplitConfig) -> set[str]:
    """Sites of validation for a fold, with about ``val_fraction`` of all patients.

    Args:
        rows: of slides of all folds.
        target: whose classes have alike shares.
        fold: that is left out.
        config: fraction and seed.

    Raises:
        InputError: there are too few sites outside the fold.
    """
    if config.val_fraction == 0.0:
        return set()
    others = [row for row in rows if row["fold"] != fold]
    patients, outside = (len({row["patient_id"] for row in some}) for some in (rows, others))
    val = min(config.val_fraction * patients / outside, 0.5)
    split_of = _divide(others, target, {"train": 1.0 - val, "val": val}, [config.split_seed, 2, fold])
    return {site for site, split in split_of.items() if split == "val"}


def check_sites_apart(rows: Sequence[Row], place: str) -> None:
    """Check that no site lies in two splits or folds.

    Raises:
        InputError: one does, or a patient is not of one site.
    """
    check_patient_sites(rows, place)
    part_of: dict[str, str] = {}
    for row in rows:
        part = part_name(row)
        if part_of.setdefault(row[SITE], part) != part:
            raise InputError(
                f"{place}: site {row[SITE]!r}: expected one split with split_by site, got {part_of[row[SITE]]!r} and "
                f"{part!r} (slide {row['slide_id']!r}); allowed: any of {', '.join(SPLIT_NAMES)}; make the splits "
                "anew, or take split_by patient"
            )


def part_name(row: Row) -> str:
    """Split of a row, with its fold where there are folds."""
    return str(row["split"]) if row.get("fold") is None else f"{row['split']}, fold {row['fold']}"


def _divide(
    rows: Sequence[Row], target: CohortTarget, fractions: Mapping[str, float], seed: list[int]
) -> dict[str, str]:
    """Split of each site, by the fraction of each split, training first."""
    names, counts = _counts(rows, target, seed)
    if len(names) < len(fractions):
        raise InputError(
            f"split_by: expected a site for each of {', '.join(fractions)}, got {len(names)} ({changes_text(names)}); "
            "allowed: site with as many sites as splits; take val_fraction 0 or test_fraction 0, or split_by patient"
        )
    division = divide_sites(counts, list(fractions.values()), training=0)
    if division is None:
        raise InputError(
            f"split_by: expected patients of every {_kind(target)} to train on beside whole sites of "
            f"{', '.join(list(fractions)[1:])}, got no such division of {len(names)} sites; allowed: site where more "
            f"sites have each {_kind(target)}; take val_fraction 0 or test_fraction 0, or split_by patient"
        )
    _log(f"{len(names)} sites in {', '.join(fractions)}", division)
    splits = list(fractions)
    return {site: splits[part] for site, part in zip(names, division.part.tolist(), strict=True)}


def _counts(rows: Sequence[Row], target: CohortTarget, seed: list[int]) -> tuple[list[str], np.ndarray]:
    """Names of the sites, and patients of each stratum in each.

    The seed draws their order.
    """
    stratum_of = _strata(rows, target)
    site_of = {row["patient_id"]: row[SITE] for row in rows}
    number = Counter((site_of[patient], stratum) for patient, stratum in stratum_of.items())
    sites, strata = sorted(set(site_of.values())), sorted(set(stratum_of.values()))
    names = [sites[index] for index in np.random.default_rng(seed).permutation(len(sites))]
    return names, np.array([[number[site, stratum] for stratum in strata] for site in names], np.int64)


def _strata(rows: Sequence[Row], target: CohortTarget) -> dict[str, int]:
    """Stratum of each patient: class, or event status, without quantiles of time."""
    return target.strata(rows, len(rows) + 1)


def _check_strata(rows: Sequence[Row], target: CohortTarget) -> None:
    """Check that each stratum is in several sites.

    Raises:
        InputError: all patients of one are in the same site: left out, it cannot be learned.
    """
    stratum_of = _strata(rows, target)
    sites_of: dict[int, set[str]] = {}
    for row in rows:
        sites_of.setdefault(stratum_of[row["patient_id"]], set()).add(row[SITE])
    alone = [f"{target.stratum(k)} in {next(iter(sites))}" for k, sites in sorted(sites_of.items()) if len(sites) == 1]
    if alone:
        raise InputError(
            f"folds: expected patients of each {_kind(target)} in several sites outside the test split, got "
            f"{'; '.join(alone)} only; allowed: two sites or more, since one that is left out is not learned from; add "
            "patients of other sites, or take split_by patient"
        )


def _kind(target: CohortTarget) -> str:
    return target.stratum(0).split()[0]


def _log(what: str, division: SiteDivision) -> None:
    limit = "" if division.is_optimal else " (the best that was found; the search ended at its limit)"
    log_line(f"{what}: shares of classes differ from those asked for by at most {division.deviation:.1%}{limit}")
