"""A byte of a store that changed is an error that names its slide and object, and plain zarr-python notices it too."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from milcore.cli.info import describe
from milcore.cohort.manifest import Manifest, Slide
from milcore.errors import DamageError, StoreError
from milcore.runtime import storage
from milcore.store.arrays import ArrayReader
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_record import SCHEMA_VERSION, SlideRecord
from milcore.store.store import PatchStore
from tests.cohorts import rewrite_metadata

PX, PATCHES = 16, 5
IDS = ("a", "b")

# reads each array of a slide from its store
READS: dict[str, Callable[[SlideGroup], object]] = {
    "patches": lambda slide: slide.patches(0, PATCHES),
    "coords": lambda slide: slide.coords,
    "tissue": lambda slide: slide.tissue,
    "thumbnail": lambda slide: slide.thumbnail,
    "tissue_mask": lambda slide: slide.tissue_mask,
    "features/f": lambda slide: slide.features("f").read(0, PATCHES),
}


def _write(folder: Path | str, codec: str = "jpeg") -> PatchStore:
    store = PatchStore(str(folder))
    slides = tuple(Slide(name, f"/{name}", 0, name, "", None, None, None) for name in IDS)
    store.write_manifest(Manifest(slides, ("0", "1")))
    for seed, slide_id in enumerate(IDS):
        random = np.random.default_rng(seed)
        with store.writer(SlideRecord(slide_id, patch_size_level0=16.0, size_level0=(99, 99)), PX, codec, 90) as writer:
            for k, patch in enumerate(random.integers(0, 256, (PATCHES, PX, PX, 3), dtype=np.uint8)):
                writer.append(patch, 16 * k + seed, seed, 1.0 - k / 9 - seed / 9)
            writer.write_thumbnail(random.integers(0, 256, (20, 20, 3), dtype=np.uint8))
            writer.write_mask(random.random((10, 10)) < 0.5)
        store.slide(slide_id).write_features("f", random.random((PATCHES, 3)).astype(np.float32), {"encoder": "e"})
    return store


def _chunk(store: PatchStore, slide_id: str, array: str) -> Path:
    """The first object with values of an array."""
    return min(path for path in Path(store.group_uri(slide_id), array, "c").rglob("*") if path.is_file())


def _flip(file: Path, _other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(bytes(data))


def _swap(file: Path, other: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(data)


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "delete": lambda file, _: file.unlink(),
    "empty": lambda file, _: file.write_bytes(b""),
    "truncate": lambda file, _: file.write_bytes(file.read_bytes()[:-3]),
    "zeros": lambda file, _: file.write_bytes(bytes(file.stat().st_size)),
    "flip": _flip,
    "swap": _swap,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("array", READS)
def test_a_changed_chunk_is_an_error_that_names_slide_and_object(tmp_path: Path, array: str, change: str) -> None:
    store = _write(tmp_path)
    file = _chunk(store, "a", array)
    CHANGES[change](file, _chunk(store, "b", array))
    with pytest.raises(DamageError, match=rf"slide 'a': {array}: {file}: expected .*; restore the object, or remove "):
        READS[array](store.slide("a"))


@pytest.mark.parametrize("kept", [0, 5])
def test_a_shard_that_ends_early_on_s3_names_its_slide(s3: str, kept: int) -> None:
    """S3 refuses a range beyond the end, and any of an empty object."""
    store = _write(f"{s3}/{uuid.uuid4().hex}", "none")
    uri = storage.join(store.group_uri("a"), "patches/c/0/0/0/0")
    opened = store.slide("a")
    opened.patches(0, 1)
    storage.write_bytes(uri, storage.read_bytes(uri)[:kept])
    for slide in (opened, store.slide("a")):  # with the index of the whole shard, and without
        with pytest.raises(DamageError, match=f"slide 'a': patches: {uri}: expected "):
            slide.patches(3, 4)


def test_zeros_that_zarr_python_left_out_are_read_and_other_absent_chunks_refused(tmp_path: Path) -> None:
    """Stores of the first versions, which zarr-python wrote: a chunk of zeros is no object."""
    group = zarr.open_group(str(tmp_path), mode="w")
    for name, values in (("labels", np.zeros(5, np.int8)), ("corner", np.zeros((1, 2), np.int32))):
        group.create_array(name, data=values, chunks=values.shape)
        assert not Path(tmp_path, name, "c").exists()
        np.testing.assert_array_equal(ArrayReader(str(tmp_path / name), name, "").read_all(), values)
    group.create_array("features", data=np.ones((4, 2), np.float32), chunks=(2, 2))
    Path(tmp_path, "features/c/1/0").unlink()
    with pytest.raises(DamageError, match="expected chunk 1, got no object"):
        ArrayReader(str(tmp_path / "features"), "features", "").read_all()


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "swap"])
@pytest.mark.parametrize("array", READS)
def test_plain_zarr_notices_a_changed_chunk_that_is_there(tmp_path: Path, array: str, change: str) -> None:
    store = _write(tmp_path)
    group = zarr.open_group(store.group_uri("a"), mode="r")
    assert group[array][:].shape[0] > 0
    CHANGES[change](_chunk(store, "a", array), _chunk(store, "b", array))
    if change == "delete" or (array, change) == ("patches", "empty"):
        assert not np.any(group[array][:])  # Zarr's fill value, which only our reader refuses
        return
    with pytest.raises((ValueError, RuntimeError, AssertionError, IndexError)):
        group[array][:]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("array", READS)
def test_changed_metadata_of_an_array_is_an_error_that_names_it(tmp_path: Path, array: str, change: str) -> None:
    store = _write(tmp_path)
    file = Path(store.group_uri("a"), array, "zarr.json")
    CHANGES[change](file, Path(store.group_uri("b"), array, "zarr.json"))
    with pytest.raises(StoreError) as caught:
        READS[array](store.slide("a"))
    named = (
        "expected complete features/f, got none" if (array, change) == ("features/f", "delete") else str(file.parent)
    )
    assert named in str(caught.value)


@pytest.mark.parametrize("array", READS)
def test_a_whole_array_of_another_slide_is_refused(tmp_path: Path, array: str) -> None:
    store = _write(tmp_path)
    one, two = (Path(store.group_uri(slide_id), array) for slide_id in IDS)
    one.rename(tmp_path / "kept")
    two.rename(one)
    with pytest.raises(DamageError, match=rf"slide 'a': {one}: expected the array of this slide, got the one of 'b'"):
        READS[array](store.slide("a"))


def test_the_group_of_another_slide_is_refused(tmp_path: Path) -> None:
    store = _write(tmp_path)
    Path(store.group_uri("b")).rename(tmp_path / "kept")
    Path(store.group_uri("a")).rename(store.group_uri("b"))
    with pytest.raises(
        DamageError, match=r"slide 'b': .*zarr\.json: expected the record of this slide, got the one of 'a'"
    ):
        store.records()


def test_the_metadata_of_features_is_no_record_of_their_slide(tmp_path: Path) -> None:
    """Both are complete and of the slide."""
    store = _write(tmp_path)
    record = Path(store.group_uri("a"), "zarr.json")
    _swap(record, record.with_name("features") / "f/zarr.json")
    with pytest.raises(DamageError, match=f"slide 'a': {record}: expected the record of this slide, got the metadata"):
        store.slide("a")


@pytest.mark.parametrize("change", ["empty", "truncate", "zeros", "flip", "swap"])
def test_a_changed_record_is_an_error_that_names_it(tmp_path: Path, change: str) -> None:
    store = _write(tmp_path)
    file = Path(store.group_uri("a"), "zarr.json")
    CHANGES[change](file, Path(store.group_uri("b"), "zarr.json"))
    with pytest.raises(DamageError, match=f"slide 'a': {file}: .*; restore .*, or run milcore ingest or "):
        store.slide("a")


def test_a_changed_byte_of_the_manifest_is_an_error_that_names_it_or_without_effect(tmp_path: Path) -> None:
    """Bytes of Parquet's statistics and padding have no effect on the rows."""
    store = _write(tmp_path)
    file, manifest = tmp_path / "manifest.parquet", store.manifest()
    intact, errors = file.read_bytes(), []
    for place in range(0, len(intact), 7):
        file.write_bytes(intact[:place] + bytes([intact[place] ^ 4]) + intact[place + 1 :])
        try:
            assert store.manifest() == manifest
        except DamageError as error:
            errors.append(error.line)
    assert len(errors) > 100
    assert all(str(file) in error for error in errors)


def test_raw_patches_in_each_other_s_shard_are_refused(tmp_path: Path) -> None:
    """Raw patches of one size have equal indexes in every shard."""
    store = _write(tmp_path, "none")
    _swap(_chunk(store, "a", "patches"), _chunk(store, "b", "patches"))
    with pytest.raises(DamageError, match=r"slide 'a': patches: .* expected chunk 0 as it was written"):
        store.slide("a").patches(0, 1)


def test_a_store_without_checksums_is_read_and_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the version before wrote it: no crc32c behind the chunks, none in the attributes, no digests."""
    store = _write(tmp_path)
    before = {name: np.asarray(read(store.slide("a"))) for name, read in READS.items() if name != "patches"}
    for file in (tmp_path / "slides").rglob("zarr.json"):
        metadata = json.loads(file.read_text())
        attributes = {key: value for key, value in metadata["attributes"].items() if key not in ("crc32c", "sha256")}
        if "schema_version" in attributes:
            attributes["schema_version"] = 1
        codecs = [codec for codec in metadata.get("codecs", []) if codec["name"] != "crc32c"]
        file.write_text(json.dumps(metadata | {"attributes": attributes} | ({"codecs": codecs} if codecs else {})))
        if codecs and codecs[0]["name"] != "sharding_indexed":
            for chunk in (file.parent / "c").rglob("*"):
                if chunk.is_file():
                    chunk.write_bytes(chunk.read_bytes()[:-4])
    for name, values in before.items():
        np.testing.assert_array_equal(READS[name](store.slide("a")), values)
    store.records()
    store.records()
    told = capsys.readouterr().err
    assert told.count(f"{tmp_path}: 2 slides were written by an earlier version, without checksums") == 1


def test_a_store_of_a_later_version_is_refused(tmp_path: Path) -> None:
    store = _write(tmp_path)
    uri = storage.join(store.group_uri("a"), "zarr.json")
    metadata = storage.read_json(uri)
    attributes = {**metadata["attributes"], "schema_version": SCHEMA_VERSION + 1}
    attributes.pop("sha256")
    storage.write_json(uri, {**metadata, "attributes": attributes})
    with pytest.raises(
        StoreError, match=f"expected schema_version {SCHEMA_VERSION}, got {SCHEMA_VERSION + 1}; allowed"
    ):
        store.slide("a")


@pytest.mark.parametrize(
    ("array", "other"), [("thumbnail", "tissue_mask"), ("tissue_mask", "thumbnail"), ("features/f", "features/g")]
)
def test_metadata_of_another_array_of_the_slide_is_refused(tmp_path: Path, array: str, other: str) -> None:
    """Those of an image have other axes, so that a chunk would be a folder."""
    store = _write(tmp_path)
    store.slide("a").write_features("g", np.ones((PATCHES, 3), np.float32), {"encoder": "e"})
    uri = Path(store.group_uri("a"), array)
    (uri / "zarr.json").write_bytes(Path(store.group_uri("a"), other, "zarr.json").read_bytes())
    with pytest.raises(DamageError, match=rf"slide 'a': {uri}: expected the array of this slide, got {other};"):
        READS[array](store.slide("a"))


@pytest.mark.parametrize("array", READS)
def test_metadata_of_a_group_in_the_place_of_an_array_is_refused(tmp_path: Path, array: str) -> None:
    store = _write(tmp_path)
    file = Path(store.group_uri("a"), array, "zarr.json")
    file.write_bytes(Path(store.group_uri("a"), "features/zarr.json").read_bytes())
    with pytest.raises(DamageError, match=rf"{file}: expected the metadata of an array .*, got that of a group"):
        READS[array](store.slide("a"))


@pytest.mark.parametrize(
    "changed",
    [{"shape": None}, {"chunk_grid": {}}, {"codecs": [1]}, {"data_type": "u9"}, {"attributes": {"crc32c": "?"}}],
    ids=str,
)
def test_metadata_without_a_digest_that_milcore_did_not_write_is_refused(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    store = _write(tmp_path)
    file = Path(store.group_uri("a"), "coords", "zarr.json")
    metadata = json.loads(file.read_text())
    del metadata["attributes"]["sha256"]
    file.write_text(json.dumps(metadata | changed))
    with pytest.raises(DamageError, match=rf"{file}: expected the metadata of an array that milcore writes, got other"):
        store.slide("a").array("coords")


def test_a_chunk_without_its_checksum_is_refused(tmp_path: Path) -> None:
    store = _write(tmp_path)
    rewrite_metadata(f"{store.group_uri('a')}/coords", {}, {"crc32c": ""})
    with pytest.raises(DamageError, match=r"slide 'a': coords: .* expected chunk 0 as it was written"):
        store.slide("a").array("coords")


@pytest.mark.parametrize("text", ["[]", "7", '{"attributes": 3}'])
def test_other_json_in_the_place_of_metadata_is_refused(tmp_path: Path, text: str) -> None:
    store = _write(tmp_path)
    file = Path(store.group_uri("a"), "zarr.json")
    file.write_text(text)
    with pytest.raises(DamageError, match=rf"{file}: expected the metadata of a group or array"):
        store.slide("a")


def test_a_lost_record_and_lost_features_are_told_of_a_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = _write(tmp_path)
    Path(store.group_uri("a"), "features/f/zarr.json").unlink()
    assert describe(store.uri)["features"] == {"f": 1}
    assert f"1 slide(s) in the manifest of {store.uri} lack features/f: a\n" in capsys.readouterr().err
    Path(store.group_uri("b"), "zarr.json").unlink()
    assert describe(store.uri)["ok"] == 1
    assert f"1 slide(s) in the manifest of {store.uri} lack a complete record: b\n" in capsys.readouterr().err
