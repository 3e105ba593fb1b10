"""Manifests: columns and defaults, and the report of every bad row at once."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from milcore.cohort.manifest import Manifest, Slide, read_manifest
from milcore.errors import InputError, StorageError, StoreError
from tests.proxy import Fault, counted_storage

CASES = Path(__file__).resolve().parents[1] / "cases" / "csv"


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
        "e,,0.5,0,\n"
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
        "line 7: mpp: expected um/px, got '0'",
        "line 7: label: expected a whole number or a class name, got '0.5'",
        "line 8: label: expected a value, got an empty cell",
        "line 8: mpp: expected um/px, got '-1'; allowed: numbers above 0",
        "line 8: split: expected the name of a split, got 'dev'; allowed: train, val, test",
        "line 9: mpp: expected um/px, got 'x'; allowed: numbers above 0",
        "line 9: label: expected numbers as in the other rows, got 'tumour'",
        "line 10: cells: expected 5, one per column of the header, got 3",
        "line 10: label: expected a value, got 'nan', which stands for none",
    ]
    assert [line[: len(start)] for line, start in zip(problems, beginnings, strict=True)] == beginnings
    assert "13 problem(s)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,path\na,b\n", "expected the column.s. slide_id, uri, got slide_id, path; .*add uri"),
        ("slide_id,uri,label,label\na,b,1,0\n", "label more than once"),
        ("", "got none; allowed: further columns; add slide_id, uri"),
        ("slide_id,uri,label\n", "expected slides, got none"),
    ],
)
def test_a_manifest_without_its_columns_or_rows_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_manifest(_csv(tmp_path, text))


def test_an_absent_or_binary_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: FileNotFoundError"):
        read_manifest(str(tmp_path / "no.csv"))
    (tmp_path / "m.csv").write_bytes(b"slide_id,uri,label\na,M\xfcller.svs,0\n")
    with pytest.raises(InputError, match="expected text in UTF-8 or UTF-16"):
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


TWO = [("a", "0", "a"), ("b", "1", "b")]
# file of tests/cases/csv, slides as (id, class, patient), why that is right
TABLES: dict[str, tuple[list[tuple[str, str, str]], str]] = {
    "bom_crlf.csv": (TWO, "a byte order mark and the line ends of Windows are no data"),
    "cr_only.csv": (TWO, "line ends of old Macs"),
    "blank_rows.csv": (TWO, "spreadsheets save rows that were once used"),
    "tab.csv": (TWO, "the header parts its columns by tabs"),
    "semicolon.csv": (TWO, "Excel where the decimal mark is a comma"),
    "excel_sep.csv": (TWO, "a line that names the delimiter is for Excel, no header"),
    "utf16.csv": (TWO, "Excel's Unicode text"),
    "index.csv": (TWO, "pandas writes its index as a column without a name"),
    "labels_float.csv": (TWO, "integers with missing values become floats in pandas: 0.0 is 0"),
    "duppath.csv": (TWO, "one file under two ids may be meant; it is noted"),
    "caseid.csv": ([("A1", "0", "A1"), ("a1", "1", "a1")], "ids stay as written; that they collide is noted"),
    "ext.csv": ([("a.svs", "0", "a.svs")], "ids stay as written"),
    "labels_012.csv": ([("a", "0", "a"), ("b", "1", "b"), ("c", "2", "c")], "whole numbers are classes"),
    "labels_bool.csv": ([("a", "False", "a"), ("b", "True", "b")], "two classes, True the later one"),
    "labels_boolmix.csv": ([("a", "True", "a"), ("b", "True", "b"), ("c", "False", "c")], "one truth, three programs"),
    "labels_pm1.csv": ([("a", "-1", "a"), ("b", "1", "b")], "-1 is a class as good as 0; the positive one is told"),
    "one_class.csv": ([("a", "1", "a"), ("b", "1", "b")], "slides can be ingested before the others are there"),
    "patient2labels.csv": ([("a", "0", "p"), ("b", "1", "p")], "a patient may have slides of several classes"),
    "mppcomma.csv": ([("a", "0", "a")], "a decimal comma is a decimal mark; um/px are checked below"),
    "zeros.csv": ([("00123", "0", "007"), ("00124", "1", "7")], "ids are texts, not numbers"),
}
# file of tests/cases/csv, the error's one line behind the file's name, why that is right
REFUSALS = {
    "empty.csv": (": expected the column(s) slide_id, uri, got none", "nothing to read"),
    "header_only.csv": (": expected slides, got none", "no slide"),
    "dupid.csv": ("line 3: slide_id: expected one row per slide, got 'a' of line 2 again", "which of them is meant?"),
    "spaceid.csv": ("make one of it, such as 'S_12_3_4'", "ids name files: what is allowed, and how to get there"),
    "underscore.csv": ("allowed: at most 200 of A-Z, a-z, 0-9, '.', '_' and '-', beginning with a let", "one rule"),
    "uniid.csv": ("make one of it, such as 'probe_u'", "the same rule: file systems disagree on other letters"),
    "labels_NA.csv": ("line 2: label: expected a value, got 'NA', which stands for none; fill it", "R's missing value"),
    "labels_None.csv": ("line 2: label: expected a value, got 'None', which stands for none", "Python's"),
    "labels_nan.csv": ("line 2: label: expected a value, got 'nan', which stands for none", "pandas's"),
    "labels_inf.csv": ("line 2: label: expected a value, got 'inf', which stands for none", "a division by zero"),
    "nul.csv": ("line 2: uri: expected text, got the control character '\\x00' in it", "no file has such a name"),
    "unterminated.csv": ("line 3: expected CSV, got a damaged row (unexpected end of data)", "a quote is open"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_people_have_them_are_read(name: str) -> None:
    manifest = read_manifest(str(CASES / name))
    slides = [(slide.slide_id, manifest.classes[slide.label], slide.patient_id) for slide in manifest.slides]
    assert slides == TABLES[name][0]
    assert {slide.uri for slide in manifest.slides} == {str(CASES.parent / "n.tif")}
    assert {slide.mpp for slide in manifest.slides} == {0.25 if name == "mppcomma.csv" else None}


@pytest.mark.parametrize("name", REFUSALS)
def test_tables_that_cannot_be_meant_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError) as raised:
        read_manifest(str(CASES / name))
    assert raised.value.line.startswith(f"manifest {CASES / name}")
    assert REFUSALS[name][0] in raised.value.line


def test_every_table_of_the_cases_has_its_row() -> None:
    assert {path.name for path in CASES.iterdir()} == TABLES.keys() | REFUSALS.keys()


@pytest.mark.parametrize(
    "data",
    [
        b"slide_id|uri|label\na|../n.tif|0\nb|../n.tif|1\n",
        "sep=;\r\nslide_id;uri;label\r\na;../n.tif;0\r\nb;../n.tif;1\r\n".encode("utf-8-sig"),
        '"SEP=\t"\nslide_id\turi\tlabel\na\t../n.tif\t0\nb\t../n.tif\t1\n'.encode("utf-16"),
        # no byte order mark
        "slide_id\turi\tlabel\na\t../n.tif\t0\nb\t../n.tif\t1\n".encode("utf-16-le"),
        "slide_id\turi\tlabel\na\t../n.tif\t0\nb\t../n.tif\t1\n".encode("utf-16-be"),
        "slide_id,uri,label\na,../n.tif,0\nb,../n.tif,1\n".encode("utf-32"),
        # commas in a header of semicolons, in a cell, and behind the last column
        b'slide_id;uri;label;grade, stage, more\na;../n.tif;0;"1;2"\nb;../n.tif;1;1,2,3,4,5\n',
        b"\n\nslide_id,uri,label,,\na,../n.tif,0,,,,\nb,../n.tif,1,,\n,,,,\n",
        # an index beside rows that were emptied
        b",slide_id,uri,label\n0,a,../n.tif,0\n1,b,../n.tif,1\n2,,,\n",
        b"Unnamed: 0,Unnamed: 0.1,slide_id,uri,label\n0,0,a,../n.tif,0\n1,1,b,../n.tif,1\n",
        # R writes NA where there is no value
        b'"slide_id","uri","label","mpp","patient_id","site","split"\n"a","../n.tif",0,NA,NA,NA,NA\n"b","../n.tif",1,NaN,NULL,#N/A,n/a',
        b'slide_id,uri,label,notes\na,../n.tif,"0,0","two\nlines"\nb,../n.tif,1.,he said "no"\n',
    ],
)
def test_siblings_of_the_tables_are_the_same_two_slides(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/m.csv").write_bytes(data)
    manifest = read_manifest(str(tmp_path / "csv/m.csv"))
    assert manifest.classes == ("0", "1")
    uri = str(tmp_path / "n.tif")
    assert manifest.slides == (
        Slide("a", uri, 0, "a", "", None, None, None),
        Slide("b", uri, 1, "b", "", None, None, None),
    )


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("a,b,0," + "x" * 131_073, "line 2: expected CSV, got a damaged row (field larger than field limit (131072))"),
        ('a,b,0,"x"y', "line 2: expected CSV, got a damaged row (',' expected after '\"')"),
        ("a,b,0,c", "line 2: cells: expected 3, one per column of the header, got 4"),
        ("NA,b,0", "line 2: slide_id: expected a value, got 'NA', which stands for none"),
        ("a,null,0", "line 2: uri: expected a value, got 'null', which stands for none"),
        ("a,b,-inf", "line 2: label: expected a value, got '-inf', which stands for none"),
        ("a,b,#N/A", "line 2: label: expected a value, got '#N/A', which stands for none"),
        ("a,b\x1bc,0", "line 2: uri: expected text, got the control character '\\x1b' in it"),
        ("a,b,0.5", "line 2: label: expected a whole number or a class name, got '0.5'"),
        ("---,b,0", "beginning with a letter or digit; make one of it"),
    ],
)
def test_siblings_of_the_refusals(tmp_path: Path, row: str, line: str) -> None:
    uri = _csv(tmp_path, f"slide_id,uri,label\n{row}\n")
    with pytest.raises(InputError) as raised:
        read_manifest(uri)
    assert line in raised.value.line


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["3", "1", "2", "10"], ("1", "2", "3", "10"), [2, 0, 1, 3]),
        (["1.0", "2", "2.0", "1e0"], ("1", "2"), [0, 1, 1, 0]),
        (["+", "-"], ("+", "-"), [0, 1]),
        # one letter, composed and not
        (["Gr\u00f6\u00dfe", "Gro\u0308\u00dfe", "a"], ("Gr\u00f6\u00dfe", "a"), [0, 0, 1]),
        (["1_0", "2_0"], ("1_0", "2_0"), [0, 1]),
    ],
)
def test_labels_become_classes(tmp_path: Path, labels: list[str], classes: tuple[str, ...], numbers: list[int]) -> None:
    rows = "".join(f"s{k},x,{label}\n" for k, label in enumerate(labels))
    manifest = read_manifest(_csv(tmp_path, f"slide_id,uri,label\n{rows}"))
    assert (manifest.classes, [slide.label for slide in manifest.slides]) == (classes, numbers)


def test_the_positive_class_may_be_written_as_in_the_table(tmp_path: Path) -> None:
    uri = _csv(tmp_path, "slide_id,uri,label\na,a,TRUE\nb,b,FALSE\n")
    assert read_manifest(uri, "FALSE").classes == ("True", "False")


def test_parquet_of_other_programs_is_the_same(tmp_path: Path) -> None:
    """Labels as floats, texts not marked as texts, a row of nothing."""
    table = pa.table({
        "slide_id": pa.array([b"a", None, b"b"]), "uri": ["a", None, "b"], "label": [2.0, None, 0.0],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "m.parquet")
    manifest = read_manifest(str(tmp_path / "m.parquet"))
    assert [(s.slide_id, manifest.classes[s.label]) for s in manifest.slides] == [("a", "2"), ("b", "0")]


def test_a_parquet_that_storage_does_not_hand_over_is_no_bad_input(s3: str) -> None:
    """A pipeline's first step tries it again."""
    with counted_storage(lambda _: Fault(403)), pytest.raises(StorageError):
        read_manifest(f"{s3}/m.parquet")
