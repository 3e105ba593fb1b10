"""Splits divide patients, keep the classes' shares, and depend on nothing but manifest and settings."""

import pyarrow as pa
import pytest

from milcore.cohort.manifest import Manifest, Slide
from milcore.cohort.splits import add_folds, check_splits, make_splits, splits_digest
from milcore.config import SplitConfig
from milcore.errors import InputError


def manifest_of(rows: list[tuple[str, str, int]], split: str | None = None) -> Manifest:
    slides = [
        Slide(slide_id, f"{slide_id}.svs", label, patient, "", None, split, None) for slide_id, patient, label in rows
    ]
    return Manifest(tuple(slides), ("0", "1"))


def cohort(patients: int) -> Manifest:
    """Two slides per patient, every other patient positive."""
    return manifest_of([(f"s{p:03d}{k}", f"p{p:03d}", p % 2) for p in range(patients) for k in "ab"])


def test_no_patient_stands_in_two_splits() -> None:
    check_splits(make_splits(cohort(40), SplitConfig()))


def test_each_class_is_divided_in_the_given_shares() -> None:
    """Of 20 patients per class 30 % are 6 test and 15 % are 3 validation, two slides each."""
    rows = make_splits(cohort(40), SplitConfig()).to_pylist()
    for label in (0, 1):
        count = {
            name: sum(r["split"] == name and r["label"] == label for r in rows) for name in ("train", "val", "test")
        }
        assert count == {"train": 22, "val": 6, "test": 12}


def test_the_order_of_the_manifest_does_not_matter() -> None:
    manifest = cohort(30)
    turned = Manifest(manifest.slides[::-1], manifest.classes)
    assert splits_digest(make_splits(manifest, SplitConfig())) == splits_digest(make_splits(turned, SplitConfig()))


def test_another_split_seed_gives_another_split() -> None:
    digests = {splits_digest(make_splits(cohort(30), SplitConfig(split_seed=seed))) for seed in range(3)}
    assert len(digests) == 3


def test_three_patients_of_a_class_serve_all_three_splits() -> None:
    rows = make_splits(cohort(6), SplitConfig()).to_pylist()
    assert {(r["label"], r["split"]) for r in rows} == {(y, s) for y in (0, 1) for s in ("train", "val", "test")}


def test_a_split_in_the_manifest_is_taken_as_it_is() -> None:
    rows = make_splits(manifest_of([("a", "p", 0), ("b", "q", 1)], split="test"), SplitConfig()).to_pylist()
    assert [row["split"] for row in rows] == ["test", "test"]


def test_a_patient_in_two_given_splits_is_refused() -> None:
    one, two = manifest_of([("a", "p", 0)], "train").slides[0], manifest_of([("b", "p", 0)], "test").slides[0]
    with pytest.raises(InputError, match="got 'train' and 'test' for patient 'p'"):
        make_splits(Manifest((one, two), ("0", "1")), SplitConfig())


def test_fractions_that_leave_nobody_to_train_on_are_refused() -> None:
    with pytest.raises(InputError, match="leaves no patient to train on"):
        SplitConfig(val_fraction=0.5, test_fraction=0.5)


def test_a_table_with_a_patient_in_two_splits_is_refused() -> None:
    table = pa.table({"slide_id": ["a", "b"], "patient_id": ["p", "p"], "label": [0, 0], "split": ["train", "test"]})
    with pytest.raises(InputError, match="'p': expected one split, got 'train' and 'test'"):
        check_splits(table)


def test_an_id_that_leads_out_of_a_folder_is_refused() -> None:
    table = pa.table({"slide_id": ["../../x"], "patient_id": ["p"], "label": [0], "split": ["test"]})
    with pytest.raises(InputError, match=r"splits: slide_id: expected a name for files, got '\.\./\.\./x'"):
        check_splits(table)


def test_a_table_with_a_patient_in_two_folds_is_refused() -> None:
    table = add_folds(make_splits(cohort(12), SplitConfig(test_fraction=0.2)), SplitConfig(folds=3))
    check_splits(table)
    outside = [k for k, fold in enumerate(table["fold"].to_pylist()) if fold >= 0]
    folds = [(fold + 1) % 3 if k == outside[0] else fold for k, fold in enumerate(table["fold"].to_pylist())]
    moved = table.set_column(table.column_names.index("fold"), "fold", pa.array(folds))
    with pytest.raises(
        InputError, match=r"expected one split, got '(train|val), fold [0-2]' and '(train|val), fold [0-2]'"
    ):
        check_splits(moved)
