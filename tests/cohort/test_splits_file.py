"""A file of splits says of each slide in which split it is; all else is the manifest's, and has to agree with it."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from milcore.cohort.manifest import Manifest, Slide
from milcore.cohort.splits import make_splits, splits_digest
from milcore.cohort.splits_file import read_splits
from milcore.config import SplitConfig, parse_config
from milcore.errors import InputError

CLASSES = ("benign", "tumour")


def manifest(changed: dict[str, tuple[int, str]] | None = None, classes: tuple[str, ...] = CLASSES) -> Manifest:
    """Slides s0 to s9 of patients p0 to p9, every other one a tumour, but for some (label, patient)."""
    facts = {f"s{k}": (k % 2, f"p{k}") for k in range(10)} | (changed or {})
    slides = [Slide(name, "", label, patient, "", None, None, None) for name, (label, patient) in facts.items()]
    return Manifest(tuple(slides), classes)


SPLITS = make_splits(manifest(), SplitConfig(test_fraction=0.4))
OLDER = SPLITS.drop_columns(["class"])


def with_cell(column: str, slide: int, value: object, table: pa.Table = SPLITS) -> pa.Table:
    values = [value if k == slide else old for k, old in enumerate(table[column].to_pylist())]
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def with_column(name: str, column: pa.Array) -> pa.Table:
    return SPLITS.set_column(SPLITS.column_names.index(name), name, column)


def with_rows(*slides: int) -> pa.Table:
    return pa.concat_tables([SPLITS, SPLITS.take(list(slides))])


def other_split(row: int) -> str:
    return "test" if SPLITS["split"][row].as_py() == "train" else "train"


@pytest.mark.parametrize("table", [SPLITS, OLDER, SPLITS.append_column("fold", pa.array([0] * 10))])
def test_a_file_of_this_and_of_earlier_versions_gives_the_splits_it_was_made_of(
    tmp_path: Path, table: pa.Table
) -> None:
    pq.write_table(table, tmp_path / "splits.parquet")
    assert read_splits(str(tmp_path / "splits.parquet"), manifest()).equals(SPLITS)


def test_class_names_are_no_part_of_the_digest_that_earlier_runs_have() -> None:
    assert splits_digest(SPLITS) == splits_digest(OLDER)


@pytest.mark.parametrize(
    ("table", "cohort", "line"),
    [
        (SPLITS, manifest({"s3": (0, "p3")}), "slide s3 was tumour, is benign"),
        (OLDER, manifest({"s3": (0, "p3")}), "slide s3 was tumour, is benign"),
        (SPLITS, manifest({"s3": (1, "p4")}), "slide s3 was of patient p3, is of p4"),
        (SPLITS, manifest(classes=("tumour", "benign")), "the classes were benign, tumour, are tumour, benign"),
        (SPLITS, manifest(classes=("benign", "tumor")), "slide s1 was tumour, is tumor"),
        (with_cell("label", 4, 1), manifest(), "benign for label 1 of slide s4"),
        (with_cell("label", 4, 1, OLDER), manifest(), "slide s4 was tumour, is benign"),
        (with_cell("label", 5, 7), manifest(), "labels of 2 classes, got 7 of slide s5"),
        (with_cell("label", 5, 7, OLDER), manifest(), "labels of 2 classes, got 7 of slide s5"),
        (with_cell("label", 5, -1, OLDER), manifest(), "labels of 2 classes, got -1 of slide s5"),
        (with_rows(2), manifest(), "slide 's2': expected one row"),
        (pa.concat_tables([SPLITS, with_cell("split", 2, other_split(2)).slice(2, 1)]), manifest(), "slide 's2'"),
        (with_cell("patient_id", 1, "p2"), manifest(), "slide s1 was of patient p2, is of p1"),
        (
            with_cell("split", 2, other_split(1), with_cell("patient_id", 1, "p2")),
            manifest({"s1": (1, "p2")}),
            "patient 'p2': expected one split",
        ),
        (with_cell("split", 0, None), manifest(), "column split: expected a value in every row, got 1 empty"),
        (with_cell("slide_id", 0, None), manifest(), "column slide_id: expected a value"),
        (with_cell("label", 0, None), manifest(), "column label: expected a value"),
        (with_cell("class", 0, None), manifest(), "column class: expected a value"),
        (with_cell("split", 0, "training"), manifest(), "slide 's0': expected the name of a split, got 'training'"),
        (with_column("label", pc.cast(SPLITS["label"], pa.float64())), manifest(), "column label: .* got double"),
        (with_column("slide_id", pa.array(range(10))), manifest(), "column slide_id: .* got int64"),
        (with_column("split", SPLITS["split"].dictionary_encode()), manifest(), "column split: .* got dictionary"),
        (with_column("slide_id", pc.cast(SPLITS["slide_id"], pa.large_string())), manifest(), "got large_string"),
        (SPLITS.append_column("split", SPLITS["split"]), manifest(), "expected Parquet at"),
        (SPLITS.drop_columns(["split"]), manifest(), "got no split"),
        (with_column("split", pa.array([b"\xff"] * 10).view(pa.string())), manifest(), "expected Parquet at"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_this_cohort_s_is_refused_in_one_line(
    tmp_path: Path, table: pa.Table, cohort: Manifest, line: str
) -> None:
    pq.write_table(table, tmp_path / "splits.parquet")
    with pytest.raises(InputError, match=f"(?s)splits.*{line}") as caught:
        read_splits(str(tmp_path / "splits.parquet"), cohort)
    assert "splits.parquet" in caught.value.line


def cut(path: Path) -> None:
    pq.write_table(SPLITS, path)
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    pq.write_table(SPLITS, path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "make",
    [cut, flip, Path.touch, Path.mkdir, lambda path: path.write_text("slide_id,split\ns0,train\n"), lambda _: None],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "splits.parquet")
    with pytest.raises(
        InputError, match=r"(?s)splits: expected .*splits\.parquet.*allowed: the splits\.parquet of a run"
    ):
        read_splits(str(tmp_path / "splits.parquet"), manifest())


def test_a_class_that_only_other_slides_have_changes_nothing(tmp_path: Path) -> None:
    """The cohort grew by a class whose name comes first: labels are counted anew, names are the same."""
    pq.write_table(SPLITS, tmp_path / "splits.parquet")
    grown = manifest({f"s{k}": (1 + k % 2, f"p{k}") for k in range(10)} | {"x": (0, "x")}, ("atypical", *CLASSES))
    read = read_splits(str(tmp_path / "splits.parquet"), grown)
    assert read["label"].to_pylist() == [1 + k % 2 for k in range(10)]
    assert read["split"].equals(SPLITS["split"])


def test_slides_that_the_manifest_lacks_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(SPLITS, tmp_path / "splits.parquet")
    smaller = Manifest(manifest().slides[:8], CLASSES)
    assert read_splits(str(tmp_path / "splits.parquet"), smaller).equals(SPLITS.slice(0, 8))
    assert "2 slides are not in the manifest and are left out (s8; s9)" in capsys.readouterr().err


@pytest.mark.parametrize("given", [{"split_seed": 1}, {"val_fraction": 0.15}, {"test_fraction": 0.2, "folds": 3}])
def test_settings_that_a_split_from_a_file_does_not_follow_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(
        InputError, match=r"splits: expected a split without (split_seed 1|val_fraction 0\.15|test_f.*)"
    ):
        parse_config(SplitConfig, {"splits": "splits.parquet", **given})
    parse_config(SplitConfig, {"splits": "splits.parquet", "folds": 3, "split_seed": 1, "val_fraction": 0.2})
