"""Input that declares more than any slide has: one line names the limit, and the rest of the cohort goes on."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milcore.cohort.annotations import load_annotation
from milcore.cohort.manifest import read_manifest
from milcore.config import (
    EncodeConfig,
    IngestConfig,
    LaunchConfig,
    PipelineSettings,
    RunSpec,
    SplitConfig,
    TrainConfig,
    TuneConfig,
)
from milcore.encoders.extraction.encode import encode
from milcore.encoders.frozen import transform_of
from milcore.encoders.spec import parse_spec
from milcore.errors import InputError, StoreError
from milcore.ingestion.cohort import ingest, plan_cohort
from milcore.ingestion.tiling import grid_size
from milcore.slides import open_slide
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.metadata import read_array_metadata
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from milcore.training.sweep import prepare_sweep
from tests.cohorts import rewrite_metadata, write_features, write_store


def png(path: Path, width: int, height: int, extra: bytes = b"") -> None:
    """A PNG whose header declares a size; it holds a hundred bytes of pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(100)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + pixels + png_chunk(b"IEND", b""))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def sparse_tiff(path: Path, width: int, height: int, tile: int) -> None:
    """A tiled TIFF all of whose tiles are absent: offset and length 0, as scanners leave glass out."""
    tiles = -(-width // tile) * -(-height // tile)
    with path.open("wb") as file:
        entries = [
            (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 0), (259, 3, 1, 7), (262, 3, 1, 6), (277, 3, 1, 3),
            (282, 5, 1, 0), (283, 5, 1, 0), (284, 3, 1, 1), (296, 3, 1, 3), (322, 3, 1, tile), (323, 3, 1, tile),
            (324, 4, tiles, 0), (325, 4, tiles, 0),
        ]  # fmt: skip
        after = 8 + 2 + 12 * len(entries) + 4
        places = {258: after, 282: after + 6, 283: after + 6, 324: after + 14, 325: after + 14}
        file.write(struct.pack("<2sHIH", b"II", 42, 8, len(entries)))
        for code, kind, count, value in entries:
            elsewhere = count > 1 or kind == 5
            file.write(struct.pack("<HHII", code, kind, count, places[code] if elsewhere else value))
        file.write(struct.pack("<I3H2I", 0, 8, 8, 8, 20_000, 1) + bytes(4 * tiles))


def reasons(folder: Path, files: list[str], config: IngestConfig) -> dict[str, Any]:
    """Outcome of every slide of a cohort: patches, or the reason of its quarantine."""
    rows = [f"s{k},{name},{k % 2}" for k, name in enumerate(files)]
    (folder / "m.csv").write_text("slide_id,uri,label\n" + "\n".join(rows) + "\n")
    plan_cohort(str(folder / "m.csv"), str(folder / "store"))
    outcomes = {outcome.slide_id: outcome for outcome in ingest(str(folder / "store"), config, 0)}
    return {name: outcomes[f"s{k}"].reason or outcomes[f"s{k}"].patches for k, name in enumerate(files)}


@pytest.fixture
def good(tmp_path: Path) -> str:
    pixels = np.full((256, 256, 3), 244, np.uint8)
    pixels[:, :192] = np.clip(np.random.default_rng(0).normal((200, 110, 170), 25, (256, 192, 3)), 0, 255)
    write_pyramid(tmp_path / "good.tiff", pixels, 0.5, 1, quality=95)
    return "good.tiff"


def test_a_declared_size_beyond_any_slide_quarantines_it(tmp_path: Path, good: str) -> None:
    sparse_tiff(tmp_path / "square.tiff", 10**6, 10**6, 4096)
    sparse_tiff(tmp_path / "long.tiff", 2**31 - 1, 100, 4096)
    png(tmp_path / "square.png", 10**6, 10**6)
    png(tmp_path / "profile.png", 64, 64, png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100 << 20))))
    png(tmp_path / "text.png", 64, 64, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20))))
    files = [good, "square.tiff", "long.tiff", "square.png", "profile.png", "text.png"]
    outcome = reasons(tmp_path, files, IngestConfig(patch_size=64))
    assert outcome["good.tiff"] == 12
    assert outcome["square.tiff"] == "declares 1,000,000 x 1,000,000 px; allowed: 500 gigapixels"
    assert outcome["long.tiff"] == "declares 2,147,483,647 x 100 px; allowed: an edge of 1 to 2,000,000 px"
    assert "more than 89,478,485 px" in outcome["square.png"]
    assert outcome["profile.png"] == "image cannot be opened (ValueError)"
    assert outcome["text.png"] == "image cannot be opened (ValueError)"


def test_more_tiles_than_any_slide_has_quarantine_it(tmp_path: Path, good: str) -> None:
    sparse_tiff(tmp_path / "largest.tiff", 250_000, 200_000, 4096)
    outcome = reasons(tmp_path, ["largest.tiff", good], IngestConfig(patch_size=128, stride=2))
    assert outcome["largest.tiff"].startswith(
        "12,485,828,969 tiles of stride 2 px in 250,000 x 200,000 px; allowed: 50,0"
    )
    assert outcome["good.tiff"] > 1_000


def test_the_largest_slide_of_a_scanner_is_opened(tmp_path: Path) -> None:
    sparse_tiff(tmp_path / "largest.tiff", 250_000, 200_000, 4096)
    with open_slide(tmp_path / "largest.tiff") as slide:
        assert slide.size == (250_000, 200_000)


def test_the_largest_slide_of_a_scanner_has_fewer_tiles_at_half_overlap_of_small_patches() -> None:
    columns, rows = grid_size((250_000, 200_000), 0.25, IngestConfig(mpp=0.25, patch_size=96, stride=48))
    assert columns * rows < 50_000_000


def test_a_patch_of_more_pixels_than_a_worker_holds_quarantines_the_slide(tmp_path: Path, good: str) -> None:
    sparse_tiff(tmp_path / "largest.tiff", 250_000, 200_000, 4096)
    outcome = reasons(tmp_path, ["largest.tiff"], IngestConfig(patch_size=1024, mpp=20.0))
    assert outcome["largest.tiff"].startswith("1,678 megapixels of level 0 under one patch; allowed: 300")


def test_an_annotation_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.geojson").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(
        InputError, match=r"annotation of slide s, .*: expected outlines, got 1,000 MB; allowed: 200 MB"
    ):
        load_annotation(str(tmp_path / "a.geojson"), "s")


def test_a_label_of_its_own_for_every_slide_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("slide_id,uri,label\n" + "".join(f"s{k},a.svs,case-{k}\n" for k in range(1_001)))
    with pytest.raises(InputError, match=r"label: expected classes, got 1,001 different ones; allowed: 1,000"):
        read_manifest(str(tmp_path / "m.csv"))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (SplitConfig, {"folds": 10**9}),
        (TuneConfig, {"objective_folds": 10**9}),
        (TuneConfig, {"trials": 10**9}),
        (TrainConfig, {"hidden": 10**9}),
        (TrainConfig, {"attention_hidden": 10**9}),
        (TrainConfig, {"epochs": 10**12}),
        (EncodeConfig, {"patches_per_batch": 10**9}),
        (LaunchConfig, {"workers": 10**9}),
    ],
)
def test_a_setting_beyond_its_range_is_refused(kind: Any, values: dict[str, int]) -> None:
    with pytest.raises(InputError, match="less than or equal to"):
        kind(**values)


def test_a_run_of_another_author_names_no_more_folds_than_the_limit() -> None:
    with pytest.raises(InputError, match="folds"):
        RunSpec(
            milcore_version="0", store_uri="/s", classes=("0", "1"), instance_digest="", splits_digest="",
            train=TrainConfig(), folds=10**9,
        )  # fmt: skip


def test_folds_of_a_sweep_are_compared_with_its_patients_before_its_first_trial(tmp_path: Path) -> None:
    write_features(write_store(str(tmp_path / "store")))
    train = TrainConfig(features="mean_rgb", epochs=1)
    with pytest.raises(InputError, match=r"folds: expected a patient of each class in every fold, got 900 folds for"):
        prepare_sweep(
            str(tmp_path / "store"), str(tmp_path / "out"), TuneConfig(objective_folds=900, train=train), SplitConfig()
        )
    assert not (tmp_path / "out").exists()


def test_settings_beyond_their_length_are_refused() -> None:
    settings = json.dumps({"train": {f"name{k}": 1 for k in range(100_000)}})
    with pytest.raises(InputError, match=r"settings: expected JSON such as .*, got 1\d\d\d kB; allowed: 64 kB"):
        PipelineSettings({}, settings)


def test_a_batch_beyond_any_device_is_refused_before_the_encoder_is_loaded(tmp_path: Path) -> None:
    store = PatchStore(str(tmp_path / "store"))
    write_store(store.uri, slides=1)
    rewrite_metadata(store.group_uri("s00"), {}, {"patch_size": 1024})
    config = EncodeConfig(encoder="torchscript:/no/such/file", name="f", patches_per_batch=60_000)
    with pytest.raises(InputError, match=r"at most 4,000 megapixels in a batch, got 60000 patches of 1024 px"):
        list(encode(store.uri, config))


def test_an_encoder_s_input_beyond_any_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"input_px: expected px of a network's input, got 1,000,000,000"):
        transform_of(parse_spec("uni,input_px=1000000000"))


@pytest.mark.parametrize("name", ["thumbnail", "coords", "features/mean_rgb"])
@pytest.mark.parametrize("part", ["shape", "chunks"])
def test_an_array_that_declares_more_than_memory_names_its_slide(tmp_path: Path, name: str, part: str) -> None:
    store = write_store(str(tmp_path / "store"), slides=1)
    write_features(store)
    uri = f"{store.group_uri('s00')}/{name}"
    shape = [10**12, *read_array_metadata(uri)["shape"][1:]]
    grid = {"name": "regular", "configuration": {"chunk_shape": shape}}
    rewrite_metadata(uri, {"shape": shape} if part == "shape" else {"chunk_grid": grid}, {})
    slide = store.slide("s00")
    with pytest.raises(StoreError, match=f"slide 's00': {name}: expected an array that milcore writes, got shape"):
        _ = slide.features("mean_rgb") if name.startswith("features") else getattr(slide, name)


def test_records_name_the_limits() -> None:
    with pytest.raises(StoreError, match=r"size_level0: .*allowed: at most 50,000,000 patches of 65,536 px"):
        SlideRecord.from_attrs({"slide_id": "a", "size_level0": [10**6, 10**6]})
