"""A table of instances comes back slide by slide; one that does not fit is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from milcore.config import ImportConfig
from milcore.errors import InputError
from milcore.ingestion.imports.import_cohort import import_source
from milcore.runtime import storage
from milcore.store.store import PatchStore
from tests.ingestion.imports.made import features_of

CASES = Path(__file__).resolve().parents[2] / "cases" / "12"


def test_a_table_comes_back_slide_by_slide(tmp_path: Path) -> None:
    values = features_of(0, rows=6)
    table = {
        "slide_id": ["b", "a", "b", "a", "a", "b"],
        "label": ["tumour", "normal", "tumour", "normal", "normal", "tumour"],
        "patient_id": ["p1", "p2", "p1", "p2", "p2", "p1"],
        "x": [0.0, 0.0, 64.0, 64.0, 128.0, 128.0],
        "y": [0.0] * 6,
    }
    listed, numeric = str(tmp_path / "listed.parquet"), str(tmp_path / "numeric.parquet")
    storage.write_table(listed, pa.table({**table, "features": values.tolist()}))
    storage.write_table(numeric, pa.table({**table, **{f"f{k}": values[:, k] for k in range(5)}}))
    for source in (listed, numeric):
        uri = source.replace(".parquet", "")
        assert import_source(source, uri, ImportConfig(format="parquet")).ok == ["b", "a"]
        store = PatchStore(uri)
        slides = store.manifest().slides
        assert [(s.slide_id, s.label, s.patient_id) for s in slides] == [("b", 1, "p1"), ("a", 0, "p2")]
        assert store.manifest().classes == ("normal", "tumour")
        read = store.slide("a").features("imported").read(0, 3)
        np.testing.assert_array_equal(read, values[[1, 3, 4]].astype(read.dtype))
        assert store.slide("a").coords.tolist() == [[0, 0], [64, 0], [128, 0]]
        assert store.slide("a").patch_size_level0 == 64.0


def test_a_table_that_unpacks_to_a_bomb_is_refused(tmp_path: Path) -> None:
    """A billion equal values take a few kB; their number stands in the metadata."""
    table = pa.table({"slide_id": ["a"] * 1_000_000, "label": ["0"] * 1_000_000, "f": np.zeros(1_000_000, np.float32)})
    with pq.ParquetWriter(str(tmp_path / "t.parquet"), table.schema) as writer:
        for _ in range(100):
            writer.write_table(table)
    with pytest.raises(
        InputError, match=r"cannot be read as Parquet \(declares 1 GB, has 0\.\d MB; allowed: 200 times"
    ):
        import_source(str(tmp_path / "t.parquet"), str(tmp_path / "s"), ImportConfig(format="parquet"))


def test_a_table_with_damaged_values_is_one_line(tmp_path: Path) -> None:
    """Its metadata is whole, its compressed values are not."""
    values = np.arange(3000, dtype=np.float32)
    table = pa.table({"slide_id": ["a"] * 3000, "label": ["0"] * 3000, "f": values})
    pq.write_table(table, str(tmp_path / "t.parquet"), compression="gzip", use_dictionary=False)
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"t\.parquet cannot be read as Parquet \(") as error:
        import_source(str(tmp_path / "t.parquet"), str(tmp_path / "s"), ImportConfig(format="parquet"))
    assert len(str(error.value).splitlines()) == 1


def _noise() -> pd.DataFrame:
    return pd.DataFrame({"slide_id": ["a"] * 4 + ["b"] * 4, "label": [0] * 4 + [1] * 4, **_columns(8)})


def _columns(rows: int) -> dict[str, np.ndarray]:
    return {f"f{k}": column for k, column in enumerate(features_of(0, rows=rows, width=3).T)}


# what pandas makes of an index: all become the same features
TABLES_WITH_INDEX = {
    # numbers that are no range become __index_level_0__
    "noise_index": lambda: _noise().set_axis([1, 2, 3, 5, 8, 13, 21, 34]),
    "noise_clean": _noise,
    "a range as a column": lambda: _noise().set_axis(list(range(8))),
    # an index with a name is a column of that name
    "index of a name": lambda: _noise().rename_axis("patch"),
    "index of slides": lambda: _noise().set_index("slide_id"),
    "several levels": lambda: _noise().set_index([[0] * 8, list(range(8))]),
    # read from a CSV that pandas wrote, or made a column again
    "Unnamed: 0": lambda: _noise().assign(**{"Unnamed: 0": range(8)}),
    "Unnamed: 0, twice": lambda: _noise().assign(**{"Unnamed: 0": range(8), "Unnamed: 1": range(8)}),
    "no name": lambda: _noise().assign(**{"": range(8)}),
    "reset_index": lambda: _noise().reset_index(),
    "reset_index of levels": lambda: _noise().set_index([[0] * 8, list(range(8))]).reset_index(),
}


@pytest.mark.parametrize("name", TABLES_WITH_INDEX)
def test_an_index_of_pandas_is_no_feature(tmp_path: Path, name: str) -> None:
    TABLES_WITH_INDEX[name]().to_parquet(tmp_path / "t.parquet", index=None if name == "noise_clean" else True)
    import_source(str(tmp_path / "t.parquet"), str(tmp_path / "s"), ImportConfig(format="parquet"))
    read = PatchStore(str(tmp_path / "s")).slide("b").features("imported").read(0, 4)
    np.testing.assert_array_equal(read, features_of(0, rows=8, width=3)[4:].astype(read.dtype))


# file of tests/cases/12, its columns beside the features, why they are none
NOISE: dict[str, tuple[set[str], str]] = {
    "noise_clean.parquet": ({"slide_id", "label"}, "id and label"),
    "noise_index.parquet": (
        {"slide_id", "label", "__index_level_0__"},
        "pandas wrote its index, shuffled rows' numbers",
    ),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_has_the_same_features_with_and_without_its_index(tmp_path: Path, name: str) -> None:
    """The features of a slide tell its label by chance alone; the index would tell it by its place."""
    extra, why = NOISE[name]
    clean, columns = pd.read_parquet(CASES / "noise_clean.parquet"), [f"f{k}" for k in range(8)]
    assert set(pq.read_schema(CASES / name).names) == {*columns, *extra}
    summary = import_source(str(CASES / name), str(tmp_path), ImportConfig(format="parquet"))
    assert (len(summary.ok), summary.patches, summary.quarantined) == (40, 800, {}), why
    for slide_id in summary.ok:
        expected = clean.loc[clean["slide_id"] == slide_id, columns].to_numpy()
        features = PatchStore(str(tmp_path)).slide(slide_id).features("imported").read(0, len(expected))
        np.testing.assert_array_equal(features, expected.astype(features.dtype), err_msg=why)


@pytest.mark.parametrize("metadata", [b"no JSON", b"[" * 100_000, b"[]", b'{"index_columns": "f0"}', b"\xff"])
def test_metadata_of_pandas_that_are_none_are_passed_over(tmp_path: Path, metadata: bytes) -> None:
    table = pa.Table.from_pandas(_noise(), preserve_index=False).replace_schema_metadata({b"pandas": metadata})
    storage.write_table(str(tmp_path / "t.parquet"), table)
    assert import_source(str(tmp_path / "t.parquet"), str(tmp_path / "s"), ImportConfig(format="parquet")).ok


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"slide_id": None}, "got label, f0; allowed: further columns; add slide_id"),
        ({"label": [0, 1, 0]}, "slide 'a': expected one label, got 0 and 1; allowed: the same"),
        ({"f0": None}, "expected features, got no such column; allowed: a list column features, or numeric columns"),
        ({"f0": ["x", "y", "z"]}, "column f0 of string"),
        ({"features": [[1.0], [2.0, 3.0], [4.0]]}, "got 2 of double in row 2, 1 in row 1"),
        (
            {"x": [0.0, None, 2.0], "y": [0.0, 0.0, 0.0]},
            "columns x, y: expected a number in every row, got none in 1 of 3",
        ),
        ({"slide_id": ["a", None, "b"]}, "slide_id: expected a value in every row, got none in 1 of 3"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, changed: dict[str, Any], line: str) -> None:
    table = {"slide_id": ["a", "a", "b"], "label": [0, 0, 1], "f0": [0.1, 0.2, 0.3]} | changed
    storage.write_table(
        str(tmp_path / "t.parquet"), pa.table({name: column for name, column in table.items() if column is not None})
    )
    with pytest.raises(InputError) as caught:
        import_source(str(tmp_path / "t.parquet"), str(tmp_path / "s"), ImportConfig(format="parquet"))
    assert line in caught.value.line
