"""Ingestion: every slide is accounted for, and running again does only what is missing."""

import math
import os
import pickle
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milcore.config import IngestConfig
from milcore.errors import InputError
from milcore.ingestion.cohort import ingest, plan_cohort
from milcore.ingestion.slide_result import SlideOutcome
from milcore.ingestion.stain import Normaliser, Stains
from milcore.runtime import storage
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.slide_record import SlideMpp, TileCounts
from milcore.store.store import PatchStore

CONFIG = IngestConfig(patch_size=64)
STAIN, WHITE = (200, 120, 170), (243, 242, 244)


def _tissue(width: int, height: int, half: bool = False) -> np.ndarray:
    """All stained, with a texture of 32 px squares; or only the left half."""
    y, x = np.mgrid[:height, :width]
    pixels = np.where(((x // 32 + y // 32) % 2)[..., None], STAIN, np.array(STAIN) - 30).astype(np.uint8)
    if half:
        pixels[:, width // 2 :] = WHITE
    return pixels


def _store(folder: Path, rows: dict[str, tuple[str, float | None]]) -> str:
    lines = [f"{slide_id},{uri},1,{'' if mpp is None else mpp}" for slide_id, (uri, mpp) in rows.items()]
    (folder / "manifest.csv").write_text("\n".join(["slide_id,uri,label,mpp", *lines]) + "\n")
    plan_cohort(str(folder / "manifest.csv"), str(folder / "store"))
    return str(folder / "store")


def _run(store: str, config: IngestConfig = CONFIG, workers: int = 0) -> dict[str, SlideOutcome]:
    return {outcome.slide_id: outcome for outcome in ingest(store, config, workers)}


def _files(folder: str | Path) -> dict[str, bytes]:
    root = Path(folder)
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def _without_rows(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files without fragments of the catalogue, each of which has a name of its own."""
    return {name: data for name, data in files.items() if not name.startswith("catalogue/rows/")}


def test_a_slide_becomes_patches_at_their_places(tmp_path: Path) -> None:
    pixels = _tissue(400, 200, half=True)
    write_pyramid(tmp_path / "a.tiff", pixels, 0.5, 2, quality=95)
    store = _store(tmp_path, {"a": ("a.tiff", None)})
    assert _run(store)["a"] == SlideOutcome("a", "ok", None, 9, skipped=False)
    slide = PatchStore(store).slide("a")
    assert slide.coords.tolist() == [[x, y] for y in (0, 64, 128) for x in (0, 64, 128)]
    for patch, (x, y) in zip(slide.patches(0, 9), slide.coords, strict=True):
        assert np.abs(patch.astype(int) - pixels[y : y + 64, x : x + 64]).mean() < 3
    assert slide.record.size_level0 == (400, 200)
    assert slide.record.counts == TileCounts(grid=18, tissue=9, unreadable=0, patches=9)
    mpp = slide.record.mpp
    assert mpp.origin == "slide"
    assert (mpp.level0, mpp.target, mpp.patch) == pytest.approx((0.5, 0.5, 0.5), rel=1e-3)
    assert slide.thumbnail.shape == (200, 400, 3)


@pytest.mark.parametrize(("mpp", "scale"), [(0.25, 2.0), (0.325, 0.5 / 0.325), (0.5, 1.0)])
def test_patches_of_any_scan_have_equal_physical_extent(tmp_path: Path, mpp: float, scale: float) -> None:
    """A stained square of 32 um repeats every 64 px at 0.5 um/px, whatever the scan's own scale."""
    edge = math.ceil(320 * scale)
    um = (np.arange(edge) + 0.5) * mpp
    stripes = np.where(((um // 16).astype(int) % 2)[None, :, None], STAIN, np.array(STAIN) - 60)
    write_pyramid(tmp_path / "a.tiff", np.broadcast_to(stripes, (edge, edge, 3)).astype(np.uint8), mpp, 2, quality=95)
    store = _store(tmp_path, {"a": ("a.tiff", None)})
    assert _run(store)["a"].patches == 25
    slide = PatchStore(store).slide("a")
    assert slide.patch_size_level0 == pytest.approx(64 * scale, rel=1e-3)
    row = slide.patches(0, 1)[0, 32, :, 1].astype(int)
    assert np.abs(row[3:29] - (STAIN[1] - 60)).max() < 12
    assert np.abs(row[35:61] - STAIN[1]).max() < 12


def test_patches_of_a_slide_that_is_out_of_reach_for_now_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pyramid(tmp_path / "a.tiff", _tissue(400, 200), 0.5, 1)
    store = _store(tmp_path, {"a": ("a.tiff", None)})
    _run(store)
    before = _files(store)
    (tmp_path / "a.tiff").rename(tmp_path / "elsewhere.tiff")
    assert _run(store)["a"] == SlideOutcome("a", "ok", None, 18, skipped=True)
    assert "stay" in capsys.readouterr().err
    assert _files(store) == before
    other = _run(store, IngestConfig(patch_size=100))["a"]
    assert (other.status, "no such file" in str(other.reason)) == ("quarantined", True)


def test_padded_and_overlapping_patches_are_the_slide_s_pixels_on_white(tmp_path: Path) -> None:
    pixels = _tissue(150, 100)
    write_pyramid(tmp_path / "a.tiff", pixels, 0.5, 1, quality=100)
    store = _store(tmp_path, {"a": ("a.tiff", None)})
    config = CONFIG.model_copy(update={"stride": 48, "border": "pad", "min_tissue": 0.1, "codec": "none"})
    assert _run(store, config)["a"].patches == 6
    slide = PatchStore(store).slide("a")
    assert slide.coords.tolist() == [[x, y] for y in (0, 48) for x in (0, 48, 96)]
    on_white = np.full((112, 160, 3), 255, int)
    on_white[:100, :150] = pixels
    for patch, (x, y) in zip(slide.patches(0, 6), slide.coords, strict=True):
        assert np.abs(patch - on_white[y : y + 64, x : x + 64]).max() <= 6


def test_normalised_stains_are_recorded(shared_data: Path, tmp_path: Path) -> None:
    """The stored patches are the slide's own ones through the matrix whose stains are kept in the attributes."""
    path = str(shared_data / "slides/CMU-1-Small-Region.svs")
    config = IngestConfig(codec="zstd")
    for folder in ("own", "same"):
        (tmp_path / folder).mkdir()
    own, same = (_store(tmp_path / folder, {"a": (path, None)}) for folder in ("own", "same"))
    _run(own, config)
    _run(same, config.model_copy(update={"stain_normalisation": "macenko"}))
    slide = PatchStore(same).slide("a")
    stains = slide.record.scan.stain_normalisation
    normaliser = Normaliser(Stains(np.array(stains["vectors"]), np.array(stains["strengths"])))
    expected = np.stack([normaliser.apply(patch) for patch in PatchStore(own).slide("a").patches(0, 3)])
    assert np.abs(slide.patches(0, 3).astype(int) - expected).max() <= 1
    assert PatchStore(own).slide("a").record.scan.stain_normalisation is None


def test_every_bad_slide_is_quarantined_with_its_reason_and_the_good_go_on(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "good.tiff", _tissue(200, 200), 0.5, 1)
    write_pyramid(tmp_path / "blank.tiff", np.full((200, 200, 3), WHITE, np.uint8), 0.5, 1)
    write_pyramid(tmp_path / "coarse.tiff", _tissue(200, 200), 1.0, 1)
    write_pyramid(tmp_path / "small.tiff", _tissue(60, 200), 0.5, 1)
    speck = np.full((200, 200, 3), WHITE, np.uint8)
    speck[10:40, 10:40] = STAIN
    write_pyramid(tmp_path / "speck.tiff", speck, 0.5, 1)
    Image.fromarray(_tissue(200, 200)).save(tmp_path / "plain.png")
    (tmp_path / "empty.svs").touch()
    (tmp_path / "folder.svs").mkdir()
    names = ["good.tiff", "blank.tiff", "coarse.tiff", "small.tiff", "speck.tiff", "plain.png", "empty.svs"]
    uris = [*names, "folder.svs", "missing.svs", "odd://x/y.svs"]
    store = _store(tmp_path, {f"s{i}": (uri, None) for i, uri in enumerate(uris)} | {"told": ("plain.png", 0.5)})
    outcomes = _run(store)
    reasons = [outcomes[f"s{i}"].reason for i in range(len(uris))]
    assert reasons == [
        None,
        "no tissue",
        "too coarse: 1 um/px (from the slide) at its finest, 0.5 um/px asked for; it would have to be magnified",
        "too small: 60 x 200 px, one tile is 64 px of level 0 wide",
        "no patches: none of 9 tiles has 50% tissue (--min-tissue)",
        "no mpp: the slide tells no um/px between 0.02 and 20; give --default-mpp, or an mpp in the manifest",
        "empty file (0 bytes)",
        "a folder without DICOM files; name the file of the slide, or the folder of a DICOM series",
        "cannot read missing.svs: there is no such file",
        f"expected a URI that data may name, got scheme odd in {uris[-1]!r}; allowed: a local path, file://, s3://, https://",
    ]
    assert PatchStore(store).slide_ids() == ["s0", "told"]
    assert PatchStore(store).quarantined() == {f"s{i}": reason for i, reason in enumerate(reasons) if reason}


def test_running_again_does_nothing_until_something_changes(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tiff", _tissue(200, 200), 0.5, 1)
    store = _store(tmp_path, {"a": ("a.tiff", None), "b": ("b.tiff", None)})
    _run(store)
    PatchStore(store).slide("a").write_features("f", np.zeros((9, 2), np.float16), {})
    assert (_run(store)["a"].skipped, _run(store)["b"].skipped) == (True, False)
    write_pyramid(tmp_path / "b.tiff", _tissue(200, 200), 0.5, 1)
    assert _run(store)["b"] == SlideOutcome("b", "ok", None, 9, skipped=False)
    os.utime(tmp_path / "a.tiff", (1, 1))
    assert _run(store)["a"].skipped, "same content, other time"
    assert PatchStore(store).slide("a").has_features("f")
    write_pyramid(tmp_path / "a.tiff", _tissue(264, 200), 0.5, 1)
    assert _run(store)["a"] == SlideOutcome("a", "ok", None, 12, skipped=False)
    assert not PatchStore(store).slide("a").has_features("f")


def test_only_settings_that_touch_a_slide_redo_it(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tiff", _tissue(200, 200), 0.5, 1)
    Image.fromarray(_tissue(200, 200)).save(tmp_path / "b.png")
    store = _store(tmp_path, {"a": ("a.tiff", None), "b": ("b.png", None)})
    _run(store)
    again = _run(store, CONFIG.model_copy(update={"default_mpp": 0.5, "max_unreadable": 3}))
    assert (again["a"].skipped, again["b"]) == (True, SlideOutcome("b", "ok", None, 9, skipped=False))
    assert not _run(store, CONFIG.model_copy(update={"mpp": 1.0}))["a"].skipped


def test_the_bytes_do_not_depend_on_processes_or_on_an_interruption(tmp_path: Path) -> None:
    uris = {}
    for i in range(3):
        write_pyramid(tmp_path / f"{i}.tiff", _tissue(200 + 64 * i, 200), 0.5, 1)
        uris[f"s{i}"] = (f"{i}.tiff", None)
    store = _store(tmp_path, uris)
    assert {name: outcome.patches for name, outcome in _run(store, workers=2).items()} == {"s0": 9, "s1": 12, "s2": 15}
    parallel = _files(store)
    Path(store).rename(tmp_path / "first")
    _store(tmp_path, uris)
    running = ingest(store, CONFIG, 0)
    next(running)
    running.close()
    (Path(store) / "slides/s0.zarr/zarr.json").unlink()
    _run(store)
    assert _without_rows(_files(store)) == _without_rows(parallel)
    assert PatchStore(store).catalogue().unknown_ids == []


def test_a_map_handed_in_does_the_work(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tiff", _tissue(200, 200), 0.5, 1)
    store = _store(tmp_path, {"a": ("a.tiff", None), "b": ("b.tiff", None)})
    order = []

    def backwards(function, tasks, _killed):
        for task in reversed(list(tasks)):
            order.append(task.slide.slide_id)
            yield pickle.loads(pickle.dumps(function))(task)  # noqa: S301 - as it would travel to another machine

    assert [outcome.status for outcome in ingest(store, CONFIG, 2, map_slides=backwards)] == ["quarantined", "ok"]
    assert order == ["b", "a"]


def test_partitions_divide_the_cohort(tmp_path: Path) -> None:
    store = _store(tmp_path, {f"s{i}": (f"{i}.tiff", None) for i in range(5)})
    ids = [[outcome.slide_id for outcome in ingest(store, CONFIG, 0, (i, 2))] for i in range(2)]
    assert ids == [["s0", "s2", "s4"], ["s1", "s3"]]
    with pytest.raises(InputError, match="partition: expected 0 <= index < 2, got 2"):
        list(ingest(store, CONFIG, 0, (2, 2)))


def test_a_plain_image_takes_its_scale_from_the_default(tmp_path: Path) -> None:
    Image.fromarray(_tissue(200, 200)).save(tmp_path / "a.png")
    store = _store(tmp_path, {"a": ("a.png", None)})
    assert _run(store, CONFIG.model_copy(update={"default_mpp": 0.25}))["a"].patches == 1
    assert PatchStore(store).slide("a").record.mpp == SlideMpp(level0=0.25, target=0.5, patch=0.5, origin="default_mpp")


def test_an_equal_manifest_is_not_written_again(tmp_path: Path) -> None:
    store = _store(tmp_path, {"a": ("a.tiff", None)})
    file = Path(store, "manifest.parquet")
    os.utime(file, (1, 1))
    _store(tmp_path, {"a": ("a.tiff", None)})
    assert file.stat().st_mtime == 1
    _store(tmp_path, {"a": ("b.tiff", None)})
    assert file.stat().st_mtime > 1


def test_remote_slides_and_stores_work(s3: str, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tiff", _tissue(200, 200), 0.5, 1)
    folder = f"{s3}/{uuid.uuid4().hex}"
    storage.write_bytes(f"{folder}/a.tiff", (tmp_path / "a.tiff").read_bytes())
    storage.write_bytes(f"{folder}/m.csv", b"slide_id,uri,label\na,a.tiff,1\nb,b.tiff,1\n")
    store = f"{folder}/store"
    plan_cohort(f"{folder}/m.csv", store)
    assert [outcome.patches for outcome in ingest(store, CONFIG, 0)] == [9, 0]
    assert PatchStore(store).slide("a").patches(0, 9).shape == (9, 64, 64, 3)
    assert [outcome.skipped for outcome in ingest(store, CONFIG, 0)] == [True, False]


def test_the_damaged_slides_end_as_they_should(shared_data: Path, tmp_path: Path) -> None:
    names = [
        "CMU-1-Small-Region.svs",
        "pyramid_generic.tiff",
        "no_mpp.svs",
        "corrupt_tiles.svs",
        "truncated_half.svs",
        "wrong_magic.svs",
        "empty.svs",
        "pyramid.ome.tiff",
        "boxes.tiff",
        "sm_image.dcm",
    ]
    rows = {name: (str(shared_data / "slides" / name), None) for name in names}
    outcomes = _run(_store(tmp_path, rows), IngestConfig())
    assert {name for name, outcome in outcomes.items() if outcome.status == "ok"} == {*names[:2], "pyramid.ome.tiff"}
    beginnings = {
        "no_mpp.svs": "no mpp",
        "corrupt_tiles.svs": "3 of 30 tiles unreadable",
        "truncated_half.svs": "truncated: the TIFF directory lies at byte 1,275,950 of a file of 969,477 bytes",
        "wrong_magic.svs": "not a slide in a known format",
        "empty.svs": "empty file (0 bytes)",
        "boxes.tiff": "no mpp",
        "sm_image.dcm": "too small: 50 x 50 px",
    }
    for name, beginning in beginnings.items():
        assert str(outcomes[name].reason).startswith(beginning)


def test_unreadable_tiles_may_be_allowed(shared_data: Path, tmp_path: Path) -> None:
    store = _store(tmp_path, {"a": (str(shared_data / "slides/corrupt_tiles.svs"), None)})
    assert _run(store, IngestConfig(max_unreadable=2))["a"].status == "quarantined"
    assert _run(store, IngestConfig(max_unreadable=3))["a"].patches == 27
    assert PatchStore(store).slide("a").record.counts.unreadable == 3
    assert not _run(store, IngestConfig(max_unreadable=2))["a"].skipped
