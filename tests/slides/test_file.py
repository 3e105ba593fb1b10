"""Remote slides read in place: the pixels of a local file, no copy, storage errors told from damage."""

import contextlib
import random
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pytest

from milcore.cohort.manifest import Slide
from milcore.config import IngestConfig
from milcore.errors import UnreachableSlideError
from milcore.ingestion.extract import PatchEncoding, extract
from milcore.ingestion.slide import ingest_slide
from milcore.ingestion.tiling import plan_tiles
from milcore.runtime import storage
from milcore.slides import RemoteFile, find_remote_slide, open_slide
from milcore.slides import file as slide_file
from milcore.slides.file import open_stream
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.slide_record import SourceFile
from milcore.store.store import PatchStore

MPP = 0.5


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    y, x = np.mgrid[:700, :900]
    pixels = np.stack([200 - x % 60, 120 + y % 40, np.full_like(x, 170)], -1).astype(np.uint8)
    write_pyramid(tmp_path / "a.tiff", pixels, MPP, 2)
    return tmp_path / "a.tiff"


@pytest.fixture
def on_s3(slide: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> RemoteFile:
    """The slide in an object, read by blocks of 1,000 bytes of which two are kept."""
    monkeypatch.setattr(slide_file, "BLOCK_MB", 1_000 / (1 << 20) + 1e-9)
    monkeypatch.setattr(slide_file, "CACHED_BLOCKS", 2)
    uri = f"{s3}/{uuid.uuid4().hex}/a.tiff"
    storage.write_bytes(uri, slide.read_bytes())
    return RemoteFile(uri, slide.stat().st_size, "e")


def test_any_byte_range_is_read(slide: Path, on_s3: RemoteFile) -> None:
    data, generator = slide.read_bytes(), random.Random(0)  # noqa: S311 - places, not a secret
    for _ in range(50):
        start, size = generator.randrange(len(data) + 10), generator.randrange(5_000)
        assert on_s3.read(start, size) == data[start : start + size]
    with open_stream(on_s3) as stream:
        stream.seek(-1_500, 2)
        assert stream.read() == data[-1_500:]
        stream.seek(8)
        assert (stream.read(2_500), stream.tell()) == (data[8:2_508], 2_508)


def test_pixels_are_those_of_a_local_file(slide: Path, on_s3: RemoteFile) -> None:
    with open_slide(slide) as local, open_slide(on_s3) as remote:
        assert (remote.size, remote.mpp, remote.level_downsamples) == (local.size, local.mpp, local.level_downsamples)
        np.testing.assert_array_equal(remote.read(100, 50, 0, 600, 500), local.read(100, 50, 0, 600, 500))


def test_a_failing_storage_is_no_damaged_tile(on_s3: RemoteFile) -> None:
    """Were the tiles taken for unreadable, the slide would stay in quarantine though only its storage failed."""
    config = IngestConfig(mpp=MPP, patch_size=256)
    with open_slide(on_s3) as reader:
        plan = plan_tiles(reader.size, MPP, np.ones((2, 2), bool), config)
        storage.remove(on_s3.uri)
        with (
            contextlib.closing(extract(reader, plan, config, PatchEncoding("jpeg"), 2)) as chunks,
            pytest.raises(UnreachableSlideError, match="there is no such file"),
        ):
            list(chunks)


def test_a_slide_on_s3_is_read_where_it_lies(
    slide: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3}/{uuid.uuid4().hex}/a.tiff"
    storage.write_bytes(uri, slide.read_bytes())
    store, config = PatchStore(str(tmp_path / "store")), IngestConfig(patch_size=64)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))  # a copy would have nowhere to go
    slides = [Slide(name, path, 0, "p", "", None, None, None) for name, path in (("far", uri), ("near", str(slide)))]
    outcomes = [ingest_slide(entry, store, config) for entry in slides]
    assert [(outcome.status, outcome.patches, outcome.reason) for outcome in outcomes] == [("ok", 140, None)] * 2
    far, near = store.slide("far"), store.slide("near")
    assert far.patches_digest == near.patches_digest
    assert far.record.source == SourceFile(uri, slide.stat().st_size, etag=storage.etag(uri))
    assert ingest_slide(slides[0], store, config).skipped
    storage.write_bytes(uri, slide.read_bytes() + b"0")
    assert not ingest_slide(slides[0], store, config).skipped


def test_an_object_replaced_while_it_is_read_is_refused(slide: Path, s3: str) -> None:
    uri = f"{s3}/{uuid.uuid4().hex}/a.tiff"
    storage.write_bytes(uri, slide.read_bytes())
    file = find_remote_slide(uri)
    assert file is not None
    file.check_unchanged()
    storage.write_bytes(uri, slide.read_bytes() + b"0")
    with pytest.raises(UnreachableSlideError, match="was replaced while it was read"):
        file.check_unchanged()


def test_slides_of_other_readers_and_local_ones_are_not_read_remotely(s3: str, tmp_path: Path) -> None:
    uri = f"{s3}/{uuid.uuid4().hex}/a.png"
    storage.write_bytes(uri, b"\x89PNG and so on")
    assert find_remote_slide(uri) is None
    assert find_remote_slide(str(tmp_path / "a.tiff")) is None
