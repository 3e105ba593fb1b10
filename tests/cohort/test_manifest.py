"""Manifests: columns and defaults, and the report of every bad row at once."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from milcore.cohort.manifest import Manifest, Slide, read_manifest
from milcore.errors import InputError, StoreError


def _csv(folder: Path, text: str) -> str:
    (folder / "manifest.csv").write_text(text)
    return str(folder / "manifest.csv")


def test_a_minimal_manifest_gets_its_defaults(tmp_path: Path) -> None:
    manifest = read_manifest(_csv(tmp_path, "slide_id,uri,label\na,slides/a.svs,1\nb,/abs/b.svs,0\n"))
    assert manifest.classes == ("0", "1")
    assert manifest.slides == (
        Slide("a", f"{tmp_path}/slides/a.svs", 1, "a", "", None, None, None),
        Slide("b", "/abs/b.svs", 0, "b", "", None, None, None),
    )


def test_all_columns_are_read_and_unknown_ones_ignored(tmp_path: Path) -> None:
    uri = _csv(
        tmp_path,
        "stain,split,slide_id,uri,label,patient_id,site,mpp,annotation\n"
        "HE,test,a,s3://bkt/a.svs,tumour,p1,north,0.25,a.geojson\nHE,train,b,../b.svs,normal,,,,\n",
    )
    first, second = read_manifest(uri).slides
    assert first == Slide("a", "s3://bkt/a.svs", 1, "p1", "north", 0.25, "test", f"{tmp_path}/a.geojson")
    assert second == Slide("b", f"{tmp_path.parent}/b.svs", 0, "b", "", None, "train", None)


@pytest.mark.parametrize(
    ("positive", "classes", "labels"),
    [
        (None, ("normal", "tumour"), [1, 0]),
        ("tumour", ("normal", "tumour"), [1, 0]),
        ("normal", ("tumour", "normal"), [0, 1]),
    ],
)
def test_classes_are_ordered_by_name_unless_one_is_positive(
    tmp_path: Path, positive: str | None, classes: tuple[str, ...], labels: list[int]
) -> None:
    manifest = read_manifest(_csv(tmp_path, "slide_id,uri,label\na,a,tumour\nb,b,normal\n"), positive)
    assert manifest.classes == classes
    assert [slide.label for slide in manifest.slides] == labels


def test_three_classes_are_kept(tmp_path: Path) -> None:
    manifest = read_manifest(_csv(tmp_path, "slide_id,uri,label\na,a,z\nb,b,x\nc,c,y\n"))
    assert (manifest.classes, [slide.label for slide in manifest.slides]) == (("x", "y", "z"), [2, 0, 1])


def test_a_positive_class_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'cancer'.*normal, tumour"):
        read_manifest(_csv(tmp_path, "slide_id,uri,label\na,a,tumour\nb,b,normal\n"), "cancer")


def test_every_bad_row_is_reported_with_its_line(tmp_path: Path) -> None:
    uri = _csv(
        tmp_path,
        "slide_id,uri,label,mpp,split\n"
        "a,a.svs,1,0.5,train\n"
        "a,b.svs,0,,\n"
        ",c.svs,0,,\n"
        "\n"
        "../d,d.svs,0,,\n"
        "e,,2,,\n"
        "f,f.svs,,-1,dev\n"
        "g,g.svs,tumour,x,\n"
        "h,h.svs,nan\n",
    )
    with pytest.raises(InputError) as caught:
        read_manifest(uri)
    problems = str(caught.value).split("\n  ")[1:]
    beginnings = [
        "line 3: slide_id: expected one row per slide, got 'a' of line 2 again",
        "line 4: slide_id: expected a value, got an empty cell",
        "line 6: slide_id: expected a name for files, got '../d'; allowed: ",
        "line 7: uri: expected a value, got an empty cell",
        "line 7: label: expected 0/1 or a class name, got '2'",
        "line 8: label: expected a value, got an empty cell",
        "line 8: mpp: expected um/px, got '-1'; allowed: numbers above 0",
        "line 8: split: expected the name of a split, got 'dev'; allowed: train, val, test",
        "line 9: mpp: expected um/px, got 'x'; allowed: numbers above 0",
        "line 9: label: expected 0/1 as in the other rows, got 'tumour'",
        "line 10: cells: expected 5, one per column of the header, got 3",
        "line 10: label: expected 0/1 or a class name, got 'nan'",
    ]
    assert [line[: len(start)] for line, start in zip(problems, beginnings, strict=True)] == beginnings
    assert "12 problem(s)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,path\na,b\n", "expected the column.s. slide_id, uri, label, got slide_id, path; .*add uri, label"),
        ("slide_id,uri,label,label\na,b,1,0\n", "label more than once"),
        ("", "got none; allowed: further columns; add slide_id, uri, label"),
        ("slide_id,uri,label\n", "expected slides, got none"),
    ],
)
def test_a_manifest_without_its_columns_or_rows_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_manifest(_csv(tmp_path, text))


def test_an_absent_or_binary_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: FileNotFoundError"):
        read_manifest(str(tmp_path / "no.csv"))
    (tmp_path / "m.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="expected UTF-8 text"):
        read_manifest(str(tmp_path / "m.csv"))
    (tmp_path / "m.parquet").write_bytes(b"slide_id,uri")
    with pytest.raises(InputError, match="expected a Parquet file"):
        read_manifest(str(tmp_path / "m.parquet"))


@pytest.mark.parametrize("damage", ["pages", "text"])
def test_damaged_parquet_is_one_line(tmp_path: Path, damage: str) -> None:
    label = pa.array([b"\xff"]).view(pa.string()) if damage == "text" else pa.array(["1"])
    table = pa.table({"slide_id": ["a"], "uri": ["a.svs"], "label": label})
    pq.write_table(table, tmp_path / "m.parquet")
    data = (tmp_path / "m.parquet").read_bytes()
    (tmp_path / "m.parquet").write_bytes(data if damage == "text" else data[:4] + bytes(56) + data[60:])
    with pytest.raises(InputError, match="expected a Parquet file, got another"):
        read_manifest(str(tmp_path / "m.parquet"))


def test_parquet_numbers_and_nulls_are_understood(tmp_path: Path) -> None:
    table = pa.table({"slide_id": [7, 8], "uri": ["a", "b"], "label": [1.0, 0.0], "mpp": [0.25, None]})
    pq.write_table(table, tmp_path / "m.parquet")
    first, second = read_manifest(str(tmp_path / "m.parquet")).slides
    assert (first.slide_id, first.label, first.mpp) == ("7", 1, 0.25)
    assert (second.slide_id, second.label, second.mpp) == ("8", 0, None)


def test_a_manifest_survives_its_table(tmp_path: Path) -> None:
    manifest = Manifest(
        (
            Slide("a", "s3://b/a", 1, "p", "x", 0.5, "val", "s3://b/a.geojson"),
            Slide("b", "/b", 0, "b", "", None, None, None),
        ),
        ("normal", "tumour"),
    )
    pq.write_table(manifest.to_table(), tmp_path / "m.parquet")
    again = Manifest.from_table(pq.read_table(tmp_path / "m.parquet"))
    assert again == manifest
    assert again["b"] == manifest.slides[1]
    with pytest.raises(InputError, match="'c'"):
        again.slide("c")


STORED = {"slide_id": "a", "uri": "/a", "label": 0, "patient_id": "p", "site": "", "mpp": None, "split": None}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"slide_id": "../../x"}, "slide_id: expected a name for files, got '../../x'; allowed: "),
        ({"slide_id": None}, "slide_id: expected a name for files, got None"),
        ({"label": 2}, "slide 'a': label: expected the index of a class, got 2; allowed: 0 to 1"),
        ({"label": None}, "slide 'a': label: expected the index of a class, got None"),
        ({"patient_id": None}, "slide 'a': patient_id: expected a text, got none"),
        ({"mpp": float("inf")}, "slide 'a': mpp: expected um/px, got inf"),
        ({"split": "../x"}, "slide 'a': split: expected a split, got '../x'"),
    ],
)
def test_a_stored_manifest_of_another_author_is_checked(row: dict[str, object], line: str) -> None:
    schema = Manifest((), ("0", "1")).to_table().schema
    with pytest.raises(StoreError) as raised:
        Manifest.from_table(pa.Table.from_pylist([STORED | {"annotation": None} | row], schema=schema))
    assert raised.value.line == f"manifest.parquet has 1 problem(s): {raised.value.line.partition(': ')[2]}"
    assert line in raised.value.line


@pytest.mark.parametrize("table", [pa.table({"a": [1]}), Manifest((), ("0", "1")).to_table().drop_columns(["label"])])
def test_another_table_is_no_stored_manifest(table: pa.Table) -> None:
    with pytest.raises(StoreError, match=r"manifest.parquet: expected a cohort, got another table"):
        Manifest.from_table(table)


def test_a_slide_that_stands_twice_in_a_stored_manifest_is_refused() -> None:
    schema = Manifest((), ("0", "1")).to_table().schema
    with pytest.raises(StoreError, match="'a' occurs twice"):
        Manifest.from_table(pa.Table.from_pylist([STORED | {"annotation": None}] * 2, schema=schema))
