"""Splits and folds of whole sites: no site lies in two of them, whatever makes or brings the splits."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from milcore.cohort.manifest import Manifest, Slide
from milcore.cohort.splits import (
    add_folds,
    check_splits,
    make_splits,
    splits_digest,
    splits_of_fold,
    splits_with_labels,
)
from milcore.cohort.splits_file import read_splits
from milcore.config import SplitConfig, TargetConfig, TrainConfig
from milcore.errors import InputError

BY_SITE = SplitConfig(split_by="site")
CLASSES = ("normal", "tumour")


def manifest(rows: list[tuple[str, str, int]], columns: dict[str, tuple[str, ...]] | None = None) -> Manifest:
    """Two slides for each (patient, site, label)."""
    slides = [
        Slide(f"{patient}{k}", "", label, patient, site, None, None, None)
        for patient, site, label in rows
        for k in "ab"
    ]
    return Manifest(tuple(slides), CLASSES, columns or {})


def cohort(sites: int = 8, seed: int = 0) -> Manifest:
    """Sites of 2 to 21 patients, a share of 0.2 to 0.8 of each with a tumour."""
    random = np.random.default_rng(seed)
    return manifest(
        [
            (f"p{site}-{k}", f"site {site}", int(k % 10 < share) if k > 1 else k)
            for site, (patients, share) in enumerate(random.integers((2, 2), (22, 9), size=(sites, 2)))
            for k in range(patients)
        ]
    )


def sites_of(table: pa.Table) -> dict[str, set[str]]:
    """Sites by split, and by fold where there are any."""
    sites: dict[str, set[str]] = defaultdict(set)
    for row in table.to_pylist():
        sites[str(row.get("fold", row["split"]))].add(row["site"])
    return sites


@pytest.mark.parametrize("seed", range(4))
def test_no_site_lies_in_two_splits_nor_in_two_folds(seed: int) -> None:
    config = SplitConfig(split_by="site", folds=3, split_seed=seed)
    splits = make_splits(cohort(seed=seed), config)
    assert set(sites_of(splits)) == {"train", "val", "test"}
    assert sum(map(len, sites_of(splits).values())) == 8
    with_folds = add_folds(splits, config)
    assert set(sites_of(with_folds)) == {"-1", "0", "1", "2"}
    assert sum(map(len, sites_of(with_folds).values())) == 8
    check_splits(with_folds)
    for fold in range(3):
        of_fold = splits_of_fold(with_folds, fold, config)
        check_splits(of_fold)
        assert sites_of(of_fold)["test"] == sites_of(with_folds)[str(fold)]
        assert sum(map(len, sites_of(of_fold).values())) == 8 - len(sites_of(with_folds)["-1"])
        assert {row["label"] for row in of_fold.to_pylist() if row["split"] == "train"} == {0, 1}


def test_shares_of_classes_are_as_near_to_the_fractions_as_sites_allow() -> None:
    """Ten sites of 4 patients, 2 of each class, 6, 1 and 3 of which are those fractions exactly."""
    rows = [(f"p{site}-{k}", f"s{site}", k % 2) for site in range(10) for k in range(4)]
    splits = make_splits(manifest(rows), SplitConfig(split_by="site", val_fraction=0.1, test_fraction=0.3))
    assert {split: len(sites) for split, sites in sites_of(splits).items()} == {"train": 6, "val": 1, "test": 3}


def test_one_site_is_left_out_by_each_fold() -> None:
    config = SplitConfig(leave_one_site_out=True, test_fraction=0.0)
    with_folds = add_folds(make_splits(cohort(), config), config)
    assert sites_of(with_folds) == {str(k): {f"site {k}"} for k in range(8)}


def test_survival_is_divided_by_event_status_alone() -> None:
    """Times differ at every site; half of the patients of each site have the event, so that folds can be exact."""
    rows = [(f"p{site}-{k}", f"s{site}", 0) for site in range(6) for k in range(4)]
    of_slides = [(site, k) for site in range(6) for k in range(4) for _ in "ab"]
    columns = {
        "days": tuple(str(100 * site + k + 1) for site, k in of_slides),
        "dead": tuple(str(k % 2) for _, k in of_slides),
    }
    target = TrainConfig(target="survival_cox", time="days", event="dead")
    config = SplitConfig(split_by="site", folds=3, test_fraction=0.0)
    with_folds = add_folds(make_splits(manifest(rows, columns), config, target), config)
    assert [len(sites) for sites in sites_of(with_folds).values()] == [2, 2, 2]


def test_a_slide_without_a_site_has_that_of_its_patient() -> None:
    slides = manifest([("p", "Ulm", 0), ("q", "Bonn", 1), ("r", "Kiel", 0), ("t", "Kiel", 1)]).slides
    first = (_with_site(slides[0], ""), *slides[1:])
    splits = make_splits(Manifest(first, CLASSES), SplitConfig(split_by="site", val_fraction=0.0, test_fraction=0.4))
    assert splits["site"].to_pylist()[:2] == ["Ulm", "Ulm"]


def test_the_digest_of_patients_splits_is_that_of_earlier_versions() -> None:
    splits = make_splits(cohort(), SplitConfig())
    assert splits["split_by"].unique().to_pylist() == ["patient"]
    assert splits_digest(splits) == splits_digest(splits.drop_columns(["site", "split_by"]))
    by_site = make_splits(cohort(), BY_SITE)
    assert by_site["split_by"].unique().to_pylist() == ["site"]
    assert splits_digest(by_site) != splits_digest(by_site.drop_columns(["site", "split_by"]))


def test_the_order_of_the_manifest_does_not_matter() -> None:
    turned = Manifest(cohort().slides[::-1], CLASSES)
    assert splits_digest(make_splits(turned, BY_SITE)) == splits_digest(make_splits(cohort(), BY_SITE))


@pytest.mark.parametrize(
    ("rows", "settings", "line"),
    [
        ([("p", "A", 0), ("q", "", 1)], {}, r"expected a site of every patient .* got none of 1 of 2 \(q\)"),
        ([("p", "A", 0), ("q", "B", 1)], {}, r"expected a site for each of train, val, test, got 2 \((A; B|B; A)\)"),
        (
            [("p", "A", 0), ("q", "A", 1), ("r", "B", 0), ("s", "B", 0)],
            {"folds": 2, "test_fraction": 0.0, "val_fraction": 0.0},
            r"folds: expected patients of each class in several sites .* got class 1 in A only",
        ),
        (
            [("p", "A", 0), ("q", "A", 1), ("r", "B", 0), ("s", "B", 1)],
            {"folds": 3, "test_fraction": 0.0, "val_fraction": 0.0},
            r"folds: expected at most one for each site .* got 3 folds of 2 site\(s\) \(A; B\); allowed: 2 to 2",
        ),
        (
            [("p", "A", 0), ("q", "B", 1)],
            {"test_fraction": 0.5, "val_fraction": 0.0},
            r"split_by: expected patients of every class to train on beside whole sites of test, got no such",
        ),
    ],
)
def test_sites_that_cannot_be_divided_are_refused_in_one_line(
    rows: list[tuple[str, str, int]], settings: dict[str, float], line: str
) -> None:
    config = SplitConfig.model_validate({"split_by": "site", **settings})
    with pytest.raises(InputError, match=line) as caught:
        add_folds(make_splits(manifest(rows), config), config)
    assert "allowed: " in caught.value.line


def test_a_patient_of_two_sites_is_refused() -> None:
    slides = manifest([("p", "A", 0), ("q", "B", 1), ("r", "C", 1)]).slides
    moved = Manifest((_with_site(slides[0], "B"), *slides[1:]), CLASSES)
    with pytest.raises(InputError, match=r"column site: expected one site per patient .* several of 1 \(p: A, B\)"):
        make_splits(moved, BY_SITE)
    make_splits(moved, SplitConfig())


def test_a_site_in_two_splits_of_the_manifest_is_refused() -> None:
    slides = [
        Slide(name, "", label, name, "Ulm", None, split, None)
        for name, label, split in (("a", 0, "train"), ("b", 1, "test"))
    ]
    given = Manifest(tuple(slides), CLASSES)
    with pytest.raises(InputError, match=r"column split: site 'Ulm': expected one split .* got 'train' and 'test'"):
        make_splits(given, BY_SITE)
    make_splits(given, SplitConfig())


def test_a_file_whose_splits_share_a_site_is_refused_where_sites_are_to_be_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "splits.parquet")
    pq.write_table(make_splits(cohort(), SplitConfig()), path)
    with pytest.raises(InputError, match=r"splits: site 'site \d': expected one split"):
        read_splits(path, cohort(), unit="site")
    assert read_splits(path, cohort())["split_by"].unique().to_pylist() == ["patient"]


def test_a_file_of_whole_sites_stays_one_and_is_held_to_it(tmp_path: Path) -> None:
    """The manifest's sites count: a patient that has moved to another site since is a leak."""
    path, splits = str(tmp_path / "splits.parquet"), make_splits(cohort(), BY_SITE)
    pq.write_table(splits, path)
    assert read_splits(path, cohort()).equals(splits)
    row = next(row for row in splits.to_pylist() if row["split"] == "test")
    other = next(site for site in sites_of(splits)["train"])
    slides = [_with_site(s, other) if s.patient_id == row["patient_id"] else s for s in cohort().slides]
    with pytest.raises(InputError, match=f"site '{other}': expected one split"):
        read_splits(path, Manifest(tuple(slides), CLASSES))
    with pytest.raises(InputError, match=f"labels_from manifest: site '{other}': expected one split"):
        splits_with_labels(splits, CLASSES, Manifest(tuple(slides), CLASSES), TargetConfig())


def test_a_table_that_was_changed_so_that_a_site_leaks_is_refused() -> None:
    config = SplitConfig(split_by="site", folds=2)
    table = add_folds(make_splits(cohort(), config), config)
    row = next(k for k, fold in enumerate(table["fold"].to_pylist()) if fold == 0)
    patient = table["patient_id"][row].as_py()
    folds = [1 if r["patient_id"] == patient else r["fold"] for r in table.to_pylist()]
    leak = table.set_column(table.column_names.index("fold"), "fold", pa.array(folds, pa.int32()))
    with pytest.raises(InputError, match=r"site 'site \d': expected one split"):
        check_splits(leak)
    with pytest.raises(InputError, match=r"expected columns .*site.* got no site"):
        check_splits(table.drop_columns(["site"]))


def test_folds_are_a_number_or_one_for_each_site() -> None:
    with pytest.raises(InputError, match=r"leave_one_site_out: expected no number of folds beside it, got folds 3"):
        SplitConfig(leave_one_site_out=True, folds=3)


def _with_site(slide: Slide, site: str) -> Slide:
    return Slide(slide.slide_id, slide.uri, slide.label, slide.patient_id, site, None, slide.split, None)
