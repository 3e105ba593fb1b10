"""Imports of any format: files without labels, files that come later, storage far away, bad input in one line."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from milcore.cli.main import app
from milcore.config import ImportConfig, ImportFormat
from milcore.errors import InputError
from milcore.ingestion.imports.import_cohort import IMPORTS, import_source
from milcore.runtime import storage
from milcore.store.store import PatchStore
from tests.ingestion.imports.made import features_of, import_files, write_h5, write_labels
from tests.leica import write_scn


def test_files_without_a_label_are_named_and_left_out(tmp_path: Path) -> None:
    for name in "abcd":
        write_h5(tmp_path / "made" / f"{name}.h5", features_of(0))
    summary = import_files(tmp_path, "clam")
    assert (summary.ok, summary.unlabelled) == (["a", "b"], ["c", "d"])


def test_a_file_that_is_touched_or_newly_labelled_is_not_written_again(tmp_path: Path) -> None:
    for name in "ab":
        write_h5(tmp_path / "made" / f"{name}.h5", features_of(0))
    import_files(tmp_path, "clam")
    (tmp_path / "made" / "a.h5").touch()
    assert import_files(tmp_path, "clam", ("a,1", "b,0")).skipped == 2
    assert [slide.label for slide in PatchStore(str(tmp_path / "store")).manifest().slides] == [1, 0]


def test_an_import_goes_to_s3_as_to_the_disk(folder_uri: str, tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", features_of(0))
    for name in "ab":
        storage.write_bytes(f"{folder_uri}/made/{name}.h5", (tmp_path / "a.h5").read_bytes())
    storage.write_bytes(f"{folder_uri}/labels.csv", b"slide_id,label\na,0\nb,1\n")
    config = ImportConfig(format="clam", labels=f"{folder_uri}/labels.csv")
    for skipped in (0, 2):
        summary = import_source(f"{folder_uri}/made", f"{folder_uri}/store", config)
        assert (summary.ok, summary.skipped) == (["a", "b"], skipped)
    slide = PatchStore(f"{folder_uri}/store").slide("b")
    np.testing.assert_array_equal(slide.features("imported").read(0, 12), features_of(0).astype(np.float16))


def test_a_slide_that_cannot_be_read_costs_the_picture_only(tmp_path: Path) -> None:
    write_h5(tmp_path / "made" / "a.h5", features_of(0))
    labels = write_labels(tmp_path, ["a,0,gone.svs,0.25"], "slide_id,label,uri,mpp")
    config = ImportConfig(format="clam", labels=labels)
    summary = import_source(str(tmp_path / "made"), str(tmp_path / "store"), config)
    assert summary.ok == ["a"]
    assert "there is no such file" in summary.without_picture["a"]
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    assert (slide.has_thumbnail, slide.record.mpp.level0) == (False, 0.25)
    Image.new("RGB", (1100, 800), (200, 100, 150)).save(tmp_path / "gone.svs", "PNG")
    again = import_source(str(tmp_path / "made"), str(tmp_path / "store"), config)
    assert (again.skipped, again.without_picture) == (0, {})
    assert PatchStore(str(tmp_path / "store")).slide("a").record.size_level0 == (1100, 800)


def test_the_table_of_formats_has_the_names_of_the_setting() -> None:
    assert tuple(IMPORTS) == get_args(ImportFormat)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--format", "clam"],
            "expected a table with format clam, got None; allowed: a table with clam, trident, stamp, pt",
        ),
        (["--format", "bags-npz", "--labels", "x.csv"], "labels: expected none with format bags-npz, got 'x.csv'"),
        (["--format", "clam", "--labels", "absent.csv"], "manifest absent.csv cannot be read"),
        (["--format", "parquet", "--positive-instances", "a"], "allowed: with patches-npz only"),
        (["--format", "csv"], "format: expected 'bags-npz'"),
        (["--format", "bags-npz"], "cannot be read as .npz"),
        (["--format", "parquet"], "cannot be read as Parquet"),
        (["--format", "clam", "--labels", "LABELS"], "got none here or in the folder h5_files; allowed: .h5 or .hdf5"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    labels = write_labels(tmp_path, ["a,0"])
    with pytest.raises((InputError, SystemExit)) as caught:
        CliRunner().invoke(
            app,
            ["import", str(tmp_path / "x"), str(tmp_path / "s"), *(labels if w == "LABELS" else w for w in arguments)],
            catch_exceptions=False,
        )
    assert isinstance(caught.value, InputError)
    assert line in caught.value.line
    assert not (tmp_path / "s").exists()


def test_annotations_of_the_labels_are_checked_and_recorded(tmp_path: Path) -> None:
    write_h5(tmp_path / "made" / "a.h5", features_of(0))
    labels = write_labels(tmp_path, ["a,0,a.geojson"], "slide_id,label,annotation")
    config = ImportConfig(format="clam", labels=labels)
    (tmp_path / "a.geojson").write_text('{"type": "Polygon", "coordinates": [[[0, 0], [9, 0]]]}')
    with pytest.raises(InputError, match=r"annotation of slide a, .*a\.geojson, feature 1: expected a ring of at"):
        import_source(str(tmp_path / "made"), str(tmp_path / "store"), config)
    (tmp_path / "a.geojson").write_text('{"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9]]]}')
    import_source(str(tmp_path / "made"), str(tmp_path / "store"), config)
    assert set(PatchStore(str(tmp_path / "store")).annotation_record().sha256) == {"a"}


def test_bounds_come_from_the_slide_s_own_file(tmp_path: Path) -> None:
    write_scn(tmp_path / "a.scn", np.full((512, 768, 3), (200, 120, 170), np.uint8), (256, 128), (2048, 1024))
    write_h5(tmp_path / "made" / "a.h5", features_of(0))
    labels = write_labels(tmp_path, ["a,0,a.scn"], "slide_id,label,uri")
    import_source(str(tmp_path / "made"), str(tmp_path / "store"), ImportConfig(format="clam", labels=labels))
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    assert (slide.size_level0, slide.bounds) == ((2048, 1024), (256, 128, 768, 512))
