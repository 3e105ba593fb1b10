"""A step that goes on with a store misses nothing that other programs changed, which know no catalogue."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from milcore.config import EncodeConfig, IngestConfig
from milcore.encoders.extraction.encode import encode
from milcore.errors import ClusterError
from milcore.ingestion.cohort import ingest, plan_cohort
from milcore.ingestion.slide_result import SlideResult
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.slide_group import SlideGroup
from milcore.store.store import PatchStore
from tests.faults.commands import PATCH_PX, write_encoder
from tests.ingestion.imports.made import features_of, import_files, write_h5

CONFIG = IngestConfig(patch_size=PATCH_PX)
OTHER = CONFIG.model_copy(update={"mpp": 1.0})


@contextlib.contextmanager
def without_catalogue(folder: Path) -> Iterator[None]:
    """For the length of the context the catalogue is out of sight, and what is written to another is lost."""
    catalogue, aside = folder / "store/catalogue", folder / "aside"
    catalogue.rename(aside)
    yield
    shutil.rmtree(catalogue, ignore_errors=True)
    aside.rename(catalogue)


def skipped(store: PatchStore, config: IngestConfig = CONFIG) -> dict[str, bool]:
    return {outcome.slide_id: outcome.skipped for outcome in ingest(store.uri, config, 0)}


def check_rows(store: PatchStore) -> None:
    catalogue = store.catalogue()
    assert {name: catalogue.row(name) for name in "ab"} == {name: store.read_row(name) for name in "ab"}


@pytest.fixture
def ingested(tmp_path: Path) -> PatchStore:
    pixels = np.full((128, 128, 3), (200, 120, 170), np.uint8)
    for name in "ab":
        write_pyramid(tmp_path / f"{name}.tiff", pixels, 0.5, 1)
    (tmp_path / "m.csv").write_text("slide_id,uri,label\na,a.tiff,0\nb,b.tiff,1\n")
    plan_cohort(str(tmp_path / "m.csv"), str(tmp_path / "store"))
    store = PatchStore(str(tmp_path / "store"))
    assert not any(skipped(store).values())
    return store


def test_slides_that_another_program_ingested_are_not_taken_for_those_of_the_catalogue(
    ingested: PatchStore, tmp_path: Path
) -> None:
    with without_catalogue(tmp_path):
        skipped(ingested, OTHER)
    assert skipped(ingested, OTHER) == {"a": True, "b": True}
    check_rows(ingested)
    with without_catalogue(tmp_path):
        skipped(ingested)
    assert skipped(ingested, OTHER) == {"a": False, "b": False}
    check_rows(ingested)


def test_no_worker_is_waited_for_where_nothing_is_missing(ingested: PatchStore) -> None:
    def without_workers(*_: object) -> Iterator[SlideResult]:
        raise ClusterError("expected a worker, got none")

    outcomes = list(ingest(ingested.uri, CONFIG, 1, map_slides=without_workers))
    assert [outcome.skipped for outcome in outcomes] == [True, True]
    with pytest.raises(ClusterError):
        list(ingest(ingested.uri, OTHER, 1, map_slides=without_workers))


def test_a_slide_whose_record_is_lost_or_damaged_is_ingested_again(ingested: PatchStore, tmp_path: Path) -> None:
    (tmp_path / "store/slides/a.zarr/zarr.json").unlink()
    (tmp_path / "store/slides/b.zarr/zarr.json").write_bytes(b"{")
    assert skipped(ingested) == {"a": False, "b": False}
    assert skipped(ingested) == {"a": True, "b": True}
    check_rows(ingested)


def test_features_that_a_person_removed_are_encoded_again(ingested: PatchStore, tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx")
    config = EncodeConfig(encoder=f"onnx:{tmp_path / 'encoder.onnx'}", name="colour")
    assert [slide.skipped for slide in encode(ingested.uri, config)] == [False, False]
    shutil.rmtree(tmp_path / "store/slides/a.zarr/features/colour")
    assert {slide.slide_id: slide.skipped for slide in encode(ingested.uri, config)} == {"a": False, "b": True}
    check_rows(ingested)


def test_slides_that_another_program_ingested_are_encoded_as_they_are_now(ingested: PatchStore, tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx")
    config = EncodeConfig(encoder=f"onnx:{tmp_path / 'encoder.onnx'}", name="colour")
    for settings, is_skipped in (
        (CONFIG, False),
        (OTHER, False),
        (OTHER.model_copy(update={"stride": PATCH_PX}), True),
    ):
        with without_catalogue(tmp_path):
            skipped(ingested, settings)
        assert [slide.skipped for slide in encode(ingested.uri, config)] == [is_skipped] * 2
        check_rows(ingested)


def test_what_another_program_changed_in_an_import_is_imported_again(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_h5(tmp_path / "made" / f"{name}.h5", features_of(seed))
    store = import_files(tmp_path, "clam").store
    assert import_files(tmp_path, "clam").skipped == 2
    shutil.rmtree(tmp_path / "store/slides/a.zarr/features")
    assert import_files(tmp_path, "clam").skipped == 1
    with without_catalogue(tmp_path):
        import_files(tmp_path, "clam", patch_size_level0=512.0)
    assert import_files(tmp_path, "clam").skipped == 0
    group = SlideGroup(store.group_uri("b"), store.slide("b").record)
    group.write_features("imported", features_of(7), {})
    assert import_files(tmp_path, "clam").skipped == 2
    check_rows(store)


def test_an_import_whose_files_changed_since_is_read_again(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_h5(tmp_path / "made" / f"{name}.h5", features_of(seed))
    store = import_files(tmp_path, "clam").store
    write_h5(tmp_path / "made/b.h5", features_of(5))
    assert import_files(tmp_path, "clam").skipped == 1
    np.testing.assert_array_equal(store.slide("b").features("imported").read(0, 12), features_of(5).astype(np.float16))
    (tmp_path / "made/b.h5").unlink()
    assert "no file b.h5" in import_files(tmp_path, "clam").quarantined["b"]
    assert import_files(tmp_path, "clam").skipped == 1
    check_rows(store)


def test_an_imported_file_out_of_reach_is_told_where_its_version_is_unknown(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_h5(tmp_path / "made" / f"{name}.h5", features_of(seed))
    store = import_files(tmp_path, "clam").store
    (tmp_path / "store/sources/a.json").unlink()
    store.rebuild_catalogue()
    (tmp_path / "made/a.h5").unlink()
    (tmp_path / "made/a.h5").symlink_to("absent")
    assert "there is no such file" in import_files(tmp_path, "clam").quarantined["a"]
