"""Numbers of slides in a manifest: what is read, refused and left out, and splits by quantiles of patients."""

import numpy as np
import pyarrow as pa
import pytest

from milcore.cohort.manifest import Manifest, Slide
from milcore.cohort.regression import REGRESSION, slide_values
from milcore.cohort.splits import add_folds, make_splits, splits_digest, splits_with_labels, target_of
from milcore.config import SplitConfig, TrainConfig
from milcore.errors import InputError

TARGET = TrainConfig(target="regression", target_column="age")


def manifest(*texts: str, slides_of_patient: int = 1) -> Manifest:
    slides = tuple(
        Slide(f"s{k}", f"s{k}.tiff", 0, f"p{k // slides_of_patient:03d}", "", None, None, None)
        for k in range(len(texts))
    )
    return Manifest(slides, (), {"age": texts})


def test_numbers_are_read_and_slides_without_one_left_out() -> None:
    values = slide_values(manifest("61.5", "-3", "", "NA", "1e3", ".5"), TARGET)
    assert values == {"s0": 61.5, "s1": -3.0, "s4": 1000.0, "s5": 0.5}


BAD = {
    "inf": "expected a number, got 1 problem(s): slide s1: 'inf'; allowed: finite numbers, or nothing",
    "-Infinity": "slide s1: '-Infinity'",
    "1,5": "slide s1: '1,5', whose comma may part thousands or decimals",
    "sixty": "slide s1: 'sixty'",
    "1e999": "slide s1: '1e999'",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_finite_number_is_one_line(text: str) -> None:
    with pytest.raises(InputError) as raised:
        slide_values(manifest("3", text, "5"), TARGET)
    assert raised.value.line.startswith("manifest column age: ")
    assert BAD[text] in raised.value.line


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (("", "NA"), "manifest column age: expected numbers that differ, got none in any of 2 slides"),
        (("7", "", "7.0"), "manifest column age: expected numbers that differ, got only 7 in 2 of 3 slides"),
    ],
)
def test_a_manifest_without_two_values_is_one_line(texts: tuple[str, ...], line: str) -> None:
    with pytest.raises(InputError) as raised:
        REGRESSION.check_manifest(manifest(*texts), TARGET)
    assert line in raised.value.line


def test_a_missing_column_is_one_line() -> None:
    with pytest.raises(InputError, match=r"manifest column age: expected a column.*allowed: grade; add it"):
        slide_values(Manifest(manifest("1").slides, (), {"grade": ("1",)}), TARGET)


def test_slides_that_are_left_out_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    REGRESSION.check_manifest(manifest("1", "", "2"), TARGET)
    assert "left out: 1 of 3 slides without age (s1)" in capsys.readouterr().err


def test_splits_hold_the_values_and_each_split_a_share_of_every_quarter() -> None:
    """Forty patients with two slides each; a patient's value is the mean of its slides."""
    order = np.random.default_rng(0).permutation(80)
    splits = make_splits(
        manifest(*(str(k // 2 + 100.0) for k in order.tolist()), slides_of_patient=2), SplitConfig(), TARGET
    )
    assert splits.column_names == ["slide_id", "patient_id", "value", "split", "site", "split_by"]
    assert target_of(splits) is REGRESSION
    mean: dict[str, list[float]] = {}
    split_of = {row["patient_id"]: row["split"] for row in splits.to_pylist()}
    for row in splits.to_pylist():
        mean.setdefault(row["patient_id"], []).append(row["value"])
    ranked = sorted(mean, key=lambda patient: (np.mean(mean[patient]), patient))
    for quarter in np.split(np.array(ranked), 4):
        assert sorted(split_of[patient] for patient in quarter) == ["test"] * 3 + ["train"] * 5 + ["val"] * 2


def test_folds_are_of_quarters_too_and_a_value_changes_the_digest() -> None:
    cohort = manifest(*(str(k) for k in range(40)))
    splits = add_folds(make_splits(cohort, SplitConfig(test_fraction=0.0), TARGET), SplitConfig(folds=5))
    means = [np.mean([row["value"] for row in splits.to_pylist() if row["fold"] == fold]) for fold in range(5)]
    # two of each quarter: by the worst luck a fold's mean is 4.5 from 19.5
    assert max(abs(mean - 19.5) for mean in means) <= 4.5
    changed = splits.set_column(2, "value", pa.array([float(k + (k == 7)) for k in range(40)]))
    assert splits_digest(changed) != splits_digest(splits)


def test_more_folds_than_patients_are_one_line() -> None:
    splits = make_splits(manifest("1", "2", "3"), SplitConfig(test_fraction=0.0), TARGET)
    with pytest.raises(InputError, match=r"5 folds for 3 patients of quantile 1 outside the test split"):
        add_folds(splits, SplitConfig(folds=5))


def splits_of(values: list[float], split: list[str], slides_of_patient: int = 1) -> tuple[pa.Table, Manifest]:
    cohort = manifest(*map(str, values), slides_of_patient=slides_of_patient)
    table = REGRESSION.table(cohort, TARGET)
    return table.append_column("split", pa.array(split)), cohort


def test_training_values_that_do_not_differ_are_one_line() -> None:
    splits, cohort = splits_of([1.0, 1.0, 2.0], ["train", "train", "test"])
    with pytest.raises(InputError, match=r"target_column: expected values that differ in training.*got only 1 in 2"):
        REGRESSION.check_splits(splits, cohort, TARGET)


def test_slides_of_a_patient_may_disagree_unless_the_patient_is_a_bag() -> None:
    splits, cohort = splits_of([1.0, 2.0, 3.0, 3.0], ["train"] * 4, slides_of_patient=2)
    REGRESSION.check_splits(splits, cohort, TARGET)
    with pytest.raises(InputError, match=r"bag: expected slides of one value per patient.*\(patient p000: 1 and 2\)"):
        REGRESSION.check_splits(splits, cohort, TARGET.model_copy(update={"bag": "patient"}))


def test_changes_since_the_splits_were_made_are_told() -> None:
    splits, cohort = splits_of([1.0, 2.0, 3.0], ["train"] * 3)
    assert REGRESSION.changes(splits.to_pylist(), {}, cohort, TARGET) == []
    later = manifest("1", "2.5", "")
    assert REGRESSION.changes(splits.to_pylist(), {}, later, TARGET) == [
        "slide s1 was 2, is 2.5",
        "slide s2 was 3, is without a value",
    ]
    assert REGRESSION.changes(splits.to_pylist(), {}, manifest("1", "2"), TARGET) == ["slide s2 is not in the manifest"]


def test_values_of_the_manifest_are_renewed_or_missing_in_one_line() -> None:
    splits, _ = splits_of([1.0, 2.0], ["train", "test"])
    renewed = splits_with_labels(splits, (), manifest("5", "6"), TARGET)
    assert renewed["value"].to_pylist() == [5.0, 6.0]
    with pytest.raises(InputError, match=r"labels_from: expected a value of every slide.*got none of s1; allowed: age"):
        splits_with_labels(splits, (), manifest("5", ""), TARGET)
