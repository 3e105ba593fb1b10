"""The store: what is written is read back, and nothing incomplete is read."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from zarr.storage import FsspecStore, LocalStore

from milcore.cohort.manifest import Manifest, Slide
from milcore.errors import InputError, StoreError
from milcore.runtime import storage
from milcore.store.slide_record import SlideRecord, TileCounts
from milcore.store.store import PatchStore, write_columns

RECORD = SlideRecord("a", patch_size_level0=32.0, size_level0=(100, 80), parameters={"mpp": 0.5})
MANIFEST = Manifest(tuple(Slide(name, f"/{name}", 0, name, "", None, None, None) for name in "cabd"), ("0", "1"))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PatchStore]:
    if request.param == "local":
        yield PatchStore(str(tmp_path / "store"))
        return
    yield PatchStore("memory://store")
    fsspec.filesystem("memory").rm("/", recursive=True)


def _patches(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def _write(store: PatchStore, slide_id: str, count: int = 5) -> None:
    with store.writer(replace(RECORD, slide_id=slide_id), 16, "zstd", 90) as writer:
        for i, patch in enumerate(_patches(count)):
            writer.append(patch, 10 * i, i, i / 8)
        writer.write_thumbnail(np.full((40, 50, 3), 200, np.uint8))
        writer.write_counts(TileCounts(count, count, 0, count))


def test_a_slide_is_read_back(store: PatchStore) -> None:
    _write(store, "a")
    slide = store.slide("a")
    assert (len(slide), slide.patch_size, slide.patch_size_level0) == (5, 16, 32.0)
    assert slide.record.counts == TileCounts(5, 5, 0, 5)
    np.testing.assert_array_equal(slide.patches(1, 4), _patches(5)[1:4])
    assert slide.coords.tolist() == [[0, 0], [10, 1], [20, 2], [30, 3], [40, 4]]
    assert slide.coords.dtype == np.int32
    assert slide.tissue.tolist() == [0.0, 0.125, 0.25, 0.375, 0.5]
    assert slide.thumbnail.shape == (40, 50, 3)
    assert np.abs(slide.thumbnail.astype(int) - 200).max() <= 1


def test_complete_comes_last_and_without_it_nothing_is_read(store: PatchStore) -> None:
    with pytest.raises(RuntimeError), store.writer(RECORD, 16, "none", 90) as writer:  # noqa: PT012
        writer.append(_patches(1)[0], 0, 0, 1.0)
        raise RuntimeError
    assert store.record("a") is None
    with pytest.raises(StoreError, match=r"absent from .* or incomplete"):
        store.slide("a")
    _write(store, "a")
    assert store.record("a").status == "ok"


def test_an_interrupted_slide_written_again_equals_one_written_at_once(tmp_path: Path) -> None:
    one, two = PatchStore(str(tmp_path / "one")), PatchStore(str(tmp_path / "two"))
    with pytest.raises(RuntimeError), one.writer(RECORD, 16, "zstd", 90) as writer:  # noqa: PT012
        writer.append(_patches(1)[0], 0, 0, 1.0)
        raise RuntimeError
    _write(one, "a")
    _write(two, "a")
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_other_parameters_remove_what_an_earlier_ingestion_left(store: PatchStore) -> None:
    _write(store, "a")
    store.slide("a").write_features("f", np.ones((5, 3), np.float16), {})
    with store.writer(replace(RECORD, parameters={"mpp": 0.25}), 16, "zstd", 90) as writer:
        writer.append(_patches(1)[0], 0, 0, 1.0)
    assert store.slide("a").feature_names() == []
    assert len(store.slide("a")) == 1


def test_slides_and_reasons_come_in_manifest_order(store: PatchStore) -> None:
    store.write_manifest(MANIFEST)
    for slide_id in "abc":
        _write(store, slide_id)
    store.quarantine(SlideRecord("b", parameters={}), "no tissue")
    assert store.manifest() == MANIFEST
    assert store.slide_ids() == ["c", "a"]
    assert store.quarantined() == {"b": "no tissue"}
    assert store.record("d") is None
    with pytest.raises(StoreError, match="quarantined: no tissue"):
        store.slide("b")
    assert not storage.exists(storage.join(store.group_uri("b"), "coords", "zarr.json"))


def test_a_quarantined_slide_is_never_half_there(store: PatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not complete any more before the first of its arrays is removed, nor until the last is."""
    _write(store, "a")
    records = []
    remove = storage.remove
    monkeypatch.setattr(storage, "remove", lambda uri: (records.append(store.record("a")), remove(uri)))
    store.quarantine(SlideRecord("a"), "no tissue")
    assert set(records) == {None}
    assert storage.files(store.group_uri("a")) == {storage.join(store.group_uri("a"), "zarr.json")}


def test_a_slide_to_be_tried_again_does_not_spoil_another_writer_s(store: PatchStore) -> None:
    with store.writer(RECORD, 16, "zstd", 90) as writer:
        for patch in _patches(5):
            writer.append(patch, 0, 0, 1.0)
        writer.write_thumbnail(np.zeros((40, 50, 3), np.uint8))
        store.quarantine(SlideRecord("a", retry=True), "unreachable", keep=True)
    slide = store.slide("a")
    np.testing.assert_array_equal(slide.patches(0, 5), _patches(5))
    assert slide.thumbnail.shape == (40, 50, 3)


def test_a_folder_that_is_no_store_is_refused(store: PatchStore) -> None:
    with pytest.raises(StoreError, match=r"expected a patch store, got no manifest\.parquet"):
        store.manifest()


def test_features_are_read_back_with_what_made_them(store: PatchStore) -> None:
    _write(store, "a")
    slide = store.slide("a")
    features = np.arange(15, dtype=np.float16).reshape(5, 3)
    slide.write_features("tiny-1", features, {"encoder": "tiny"})
    np.testing.assert_array_equal(store.slide("a").features("tiny-1").read(0, 5), features)
    attrs = slide.feature_attrs("tiny-1")
    assert (attrs["encoder"], attrs["complete"], len(attrs["digest"])) == ("tiny", True, 64)
    assert (slide.feature_names(), slide.has_features("tiny-1"), slide.has_features("no")) == (["tiny-1"], True, False)
    with pytest.raises(StoreError, match="expected complete features/no, got none; allowed: tiny-1"):
        slide.features("no")


def test_incomplete_features_are_not_read(store: PatchStore) -> None:
    _write(store, "a")
    slide = store.slide("a")
    slide.write_features("f", np.zeros((5, 3), np.float16), {})
    uri = storage.join(slide.uri, "features", "f", "zarr.json")
    metadata = storage.read_json(uri)
    storage.write_json(uri, {**metadata, "attributes": {"complete": False}})
    assert not slide.has_features("f")
    with pytest.raises(StoreError, match="allowed: none"):
        slide.features("f")


def test_a_half_written_feature_array_is_none_for_any_reader(
    store: PatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each object that a writer leaves behind, killed there, nothing is read, neither new nor old nor mixed."""
    monkeypatch.setattr("milcore.store.features.FEATURE_CHUNK_MB", 2 * 3 * 2 / 1e6)
    _write(store, "a")
    old, new = np.zeros((5, 3), np.float16), np.arange(15, dtype=np.float16).reshape(5, 3)
    uri = storage.join(store.group_uri("a"), "features", "f")
    write_parts, states = storage.write_parts, []

    def watched(object_uri: str, parts: list[bytes]) -> None:
        write_parts(object_uri, parts)
        there = (store.slide("a").has_features("f"), storage.exists(f"{uri}/zarr.json"))
        states.append((object_uri, *there))

    store.slide("a").write_features("f", old, {})
    monkeypatch.setattr(storage, "write_parts", watched)
    store.slide("a").write_features("f", new, {})
    monkeypatch.undo()
    inside = [(name.removeprefix(uri), *there) for name, *there in states if name.startswith(uri)]
    assert [name for name, *_ in inside] == ["/c/0/0", "/c/1/0", "/c/2/0", "/zarr.json"]
    assert [there for _, *there in inside] == 3 * [[False, False]] + [[True, True]]
    np.testing.assert_array_equal(store.slide("a").features("f").read(0, 5), new)


def test_equal_features_written_again_are_left_alone_and_smaller_ones_leave_nothing(
    store: PatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(store, "a")
    features = np.arange(15, dtype=np.float16).reshape(5, 3)
    with monkeypatch.context() as small:
        small.setattr("milcore.store.features.FEATURE_CHUNK_MB", 2 * 3 * 2 / 1e6)
        store.slide("a").write_features("f", features, {"encoder": "tiny"})
    uri = storage.join(store.group_uri("a"), "features", "f")
    before = storage.files(uri)
    assert len(before) == 4
    store.slide("a").write_features("f", features, {"encoder": "tiny"})
    assert storage.files(uri) == before
    store.slide("a").write_features("f", features, {"encoder": "other"})
    assert len(storage.files(uri)) == 2
    np.testing.assert_array_equal(store.slide("a").features("f").read(0, 5), features)


def test_features_not_one_per_patch_are_refused(store: PatchStore) -> None:
    _write(store, "a")
    with pytest.raises(InputError, match=r"shape \(4, 3\) for 5 patches"):
        store.slide("a").write_features("f", np.zeros((4, 3), np.float16), {})
    with pytest.raises(InputError, match="expected a name for features, got 'a/b'"):
        store.slide("a").write_features("a/b", np.zeros((5, 3), np.float16), {})


def test_features_of_many_chunks_survive(store: PatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milcore.store.features.FEATURE_CHUNK_MB", 2 * 3 * 2 / 1e6)
    _write(store, "a")
    features = np.arange(15, dtype=np.float16).reshape(5, 3)
    store.slide("a").write_features("f", features, {})
    np.testing.assert_array_equal(store.slide("a").features("f").read(0, len(features)), features)


def test_the_digest_of_patches_follows_pixels_and_places(tmp_path: Path) -> None:
    digests = set()
    for x, value in ((0, 1), (1, 1), (0, 2)):
        store = PatchStore(str(tmp_path / f"{x}{value}"))
        with store.writer(RECORD, 16, "none", 90) as writer:
            writer.append(np.full((16, 16, 3), value, np.uint8), x, 0, 1.0)
        digests.add(store.slide("a").patches_digest)
    assert len(digests) == 3


def test_plain_zarr_reads_the_whole_group(tmp_path: Path) -> None:
    store = PatchStore(str(tmp_path))
    _write(store, "a")
    group = zarr.open_group(tmp_path / "slides/a.zarr", mode="r")
    assert sorted(group.array_keys()) == ["coords", "patches", "thumbnail", "tissue"]
    np.testing.assert_array_equal(group["patches"][:], _patches(5))
    assert group.attrs["complete"] is True
    features = np.arange(15, dtype=np.float16).reshape(5, 3)
    store.slide("a").write_features("f", features, {})
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "slides/a.zarr", mode="r")["features"]["f"][:], features)


def test_what_was_seen_of_a_source_is_kept(store: PatchStore) -> None:
    assert store.source("a") is None
    store.write_source("a", {"uri": "/a", "size": 3, "version": "v"})
    assert store.source("a") == {"uri": "/a", "size": 3, "version": "v"}


def test_columns_written_again_replace_others_and_nothing_beside_the_group(store: PatchStore) -> None:
    uri = storage.join(store.uri, "a.zarr")
    storage.write_bytes(storage.join(store.uri, "a.zarr.txt"), b"mine")
    write_columns(uri, {"x": np.arange(3), "old": np.arange(3)}, {"slide_id": "a"})
    write_columns(uri, {"x": np.arange(4, dtype=np.float32)}, {"slide_id": "b"})
    group = zarr.open_group(LocalStore(uri) if storage.is_local(uri) else FsspecStore.from_url(uri), mode="r")
    assert sorted(group.array_keys()) == ["x"]
    assert group["x"][:].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert (group.attrs["slide_id"], group.attrs["complete"]) == ("b", True)
    assert storage.names(store.uri) == ["a.zarr", "a.zarr.txt"]


def test_a_group_that_links_to_somebody_s_folder_takes_nothing_from_it(tmp_path: Path) -> None:
    store = PatchStore(str(tmp_path / "store"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/keep.txt").write_text("x")
    (tmp_path / "store/slides").mkdir(parents=True)
    (tmp_path / "store/slides/a.zarr").symlink_to(tmp_path / "mine")
    store.quarantine(SlideRecord("a"), "reason")
    assert (tmp_path / "mine/keep.txt").read_text() == "x"


def test_attributes_of_another_slide_are_refused(store: PatchStore) -> None:
    _write(store, "b")
    uri = storage.join(store.group_uri("b"), "zarr.json")
    storage.write_bytes(storage.join(store.group_uri("a"), "zarr.json"), storage.read_bytes(uri))
    with pytest.raises(StoreError, match=r"slide 'a': .*: expected the record of this slide, got the one of 'b'"):
        store.slide("a")


@pytest.mark.parametrize(("count", "kept"), [(5, ["f"]), (4, [])])
def test_a_slide_written_again_keeps_the_features_of_equal_patches(
    store: PatchStore, count: int, kept: list[str]
) -> None:
    _write(store, "a")
    slide = store.slide("a")
    slide.write_features("f", np.ones((5, 2), np.float32), {"patches_digest": slide.patches_digest})
    slide.write_features("of_others", np.ones((5, 2), np.float32), {"patches_digest": "0" * 64})
    _write(store, "a", count)
    assert store.slide("a").feature_names() == kept
    below = f"{store.group_uri('a')}/features/"
    assert {uri.removeprefix(below).split("/")[0] for uri in storage.files(store.group_uri("a")) if below in uri} == (
        {"zarr.json", *kept} if kept else set()
    )


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"uri": "/a", "siz'])
def test_a_damaged_version_of_a_slide_s_file_is_as_none(store: PatchStore, content: bytes) -> None:
    store.write_source("a", {"uri": "/a", "size": 3, "version": "1"})
    assert store.source("a") == {"uri": "/a", "size": 3, "version": "1"}
    storage.write_bytes(f"{store.uri}/sources/a.json", content)
    assert store.source("a") is None


def test_a_manifest_that_loses_columns_is_written_with_a_line(
    store: PatchStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.update_manifest(replace(MANIFEST, columns={"os_days": ("1", "2", "3", ""), "grade": ("",) * 4}))
    assert capsys.readouterr().err == ""
    store.update_manifest(replace(MANIFEST, columns={"grade": ("2",) * 4}))
    assert "column(s) os_days of the store's are not in this one" in capsys.readouterr().err
    assert store.manifest().columns == {"grade": ("2",) * 4}
    store.update_manifest(store.manifest())
    assert capsys.readouterr().err == ""
