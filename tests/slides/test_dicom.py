"""DICOM slides: a folder, or one file of it, is its whole series; what OpenSlide leaves out silently is refused."""

import http.server
import os
import shutil
import ssl
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from milcore.cohort.manifest import Slide
from milcore.config import IngestConfig
from milcore.errors import SlideError
from milcore.ingestion.cohort import plan_cohort
from milcore.ingestion.fingerprint import store_state
from milcore.ingestion.imports.slide_image import SlideImage, read_slide_image
from milcore.ingestion.partition import read_partition, write_partitions
from milcore.ingestion.slide import ingest_slide
from milcore.ingestion.slide_result import SlideOutcome
from milcore.runtime import storage
from milcore.slides import open_slide
from milcore.slides.source import source_stat, source_version
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from tests.dicom import LABEL, PATIENT, decoded, level_pixels, write_label, write_level, write_series

EDGE = 128
CONFIG = IngestConfig(patch_size=EDGE, codec="zstd")
WIDTH, HEIGHT = 1000, 700


def tissue(seed: int = 0) -> np.ndarray:
    """Stained tissue on glass, in blots so large that JPEG keeps their colour."""
    pixels = np.full((HEIGHT, WIDTH, 3), 242, np.uint8)
    blots = np.random.default_rng(seed).normal((190, 120, 170), 20, (64, 90, 3)).clip(0, 255).astype(np.uint8)
    pixels[60:572, 80:800] = np.kron(blots, np.ones((8, 8, 1), np.uint8))
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_series(tmp_path / "series", tissue(), 0.5, levels=3)
    return tmp_path / "series"


def ingested(uri: Path | str, store: Path, config: IngestConfig = CONFIG) -> SlideOutcome:
    return ingest_slide(Slide("a", str(uri), 0, "a", "", None, None, None), PatchStore(str(store)), config)


def record_of(store: Path) -> SlideRecord:
    record = PatchStore(str(store)).record("a")
    assert record is not None
    return record


@pytest.mark.parametrize("level", [0, 1])
def test_patches_of_a_folder_are_the_pixels_that_were_written(folder: Path, tmp_path: Path, level: int) -> None:
    """By hand: of level 0 the tiles 1 to 5 of rows 0 to 3 are half tissue, of level 1 those 0 to 2 of rows 0 and 1."""
    config = CONFIG.model_copy(update={"mpp": 0.5 * 2**level})
    assert ingested(folder, tmp_path / "store", config).reason is None
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    places = [(x, y) for y in range((4, 2)[level]) for x in ((1, 2, 3, 4, 5), (0, 1, 2))[level]]
    assert (slide.coords // (EDGE << level)).tolist() == [list(place) for place in places]
    level0 = level_pixels(tissue(), level)
    expected = decoded(level0)
    assert np.abs(expected.astype(int) - level0).mean() < 3
    for patch, (x, y) in zip(slide.patches(0, len(slide)), places, strict=True):
        of_file = expected[y * EDGE : (y + 1) * EDGE, x * EDGE : (x + 1) * EDGE]
        np.testing.assert_array_equal(patch, of_file)
    record = record_of(tmp_path / "store")
    assert record.mpp is not None
    assert (record.mpp.level0, record.mpp.origin, record.size_level0) == (0.5, "slide", (WIDTH, HEIGHT))


@pytest.mark.parametrize("name", ["level0.dcm", "level2.dcm", "label", "macro"])
def test_one_named_file_is_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    ingested(folder, tmp_path / "whole")
    assert ingested(folder / name, tmp_path / "named").status == "ok"
    whole, named = record_of(tmp_path / "whole"), record_of(tmp_path / "named")
    assert (named.patches_digest, named.size_level0) == (whole.patches_digest, (WIDTH, HEIGHT))
    assert whole.source is not None
    assert named.source is not None
    assert (named.source.sha256, named.source.size) == (whole.source.sha256, whole.source.size)
    assert whole.source.size == sum(file.stat().st_size for file in folder.iterdir())


def test_a_named_file_chooses_among_the_series_of_a_folder(folder: Path, tmp_path: Path) -> None:
    ingested(folder, tmp_path / "alone")
    other = write_series(tmp_path / "other", tissue(1), 0.25)
    for file in (tmp_path / "other").iterdir():
        shutil.copy(file, folder / f"other-{file.name}")
    assert ingested(folder / "level1.dcm", tmp_path / "named").status == "ok"
    assert record_of(tmp_path / "named").patches_digest == record_of(tmp_path / "alone").patches_digest
    assert record_of(tmp_path / "named").source.sha256 == record_of(tmp_path / "alone").source.sha256
    reason = str(ingested(folder, tmp_path / "several").reason)
    assert reason.startswith("expected a folder of one DICOM series, got 2 (")
    assert other.uid in reason
    assert reason.endswith("put each into a folder of its own, or name one file of the series")


def test_a_level_that_changes_is_noticed_and_a_date_or_a_note_is_not(tmp_path: Path) -> None:
    """The level is coarser than any patch needs, so that only the digest tells."""
    folder, store = tmp_path / "series", tmp_path / "store"
    series = write_series(folder, tissue(), 0.5, levels=3)
    assert not ingested(folder, store).skipped
    assert ingested(folder, store).skipped
    os.utime(folder / "level1.dcm", (1, 1))
    (folder / "notes.txt").write_text("beside the series")
    assert ingested(folder, store).skipped
    before = record_of(store)
    write_level(folder / "level2.dcm", 255 - tissue(), 0.5, 2, series)
    assert not ingested(folder, store).skipped
    after = record_of(store)
    assert after.source is not None
    assert before.source is not None
    assert after.source.sha256 != before.source.sha256


def test_a_scheduler_sees_that_a_level_changed(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", tissue(), 0.5, levels=2)
    (tmp_path / "m.csv").write_text("slide_id,uri,label\na,series,1\n")
    plan_cohort(str(tmp_path / "m.csv"), str(tmp_path / "store"))
    ingested(tmp_path / "series", tmp_path / "store")
    before = store_state(str(tmp_path / "store"))
    assert store_state(str(tmp_path / "store")) == before
    write_level(tmp_path / "series/level1.dcm", 255 - tissue(), 0.5, 1, series)
    assert store_state(str(tmp_path / "store")) != before


def only_label(folder: Path) -> None:
    for file in folder.glob("level*"):
        file.unlink()


def damaged_header(folder: Path) -> None:
    """OpenSlide would go on with level 1 as the finest, and say nothing."""
    data = (folder / "level0.dcm").read_bytes()
    (folder / "level0.dcm").write_bytes(data[:600] + bytes(100) + data[700:])


def begun_download(folder: Path) -> None:
    (folder / "level0.dcm").write_bytes(b"")


def other_kind(folder: Path) -> None:
    image = pydicom.dcmread(folder / "level1.dcm")
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    image.save_as(folder / "segmentation")


def other_label(folder: Path) -> None:
    """Of a series that has no slide."""
    write_label(folder / "other-label", write_series(folder / "elsewhere", tissue(), 0.5, 1))


def no_dicom(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("x")


def many_files(folder: Path) -> None:
    for number in range(200):
        (folder / f"{number}.txt").touch()


CANNOT_OPEN = (
    "{}: expected a DICOM file by which OpenSlide opens a slide, got one that is damaged, is no whole-slide "
    "microscopy, or whose series has no VOLUME image; restore it, or move it out of the folder"
)
REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (only_label, CANNOT_OPEN.format("label")),
    (damaged_header, CANNOT_OPEN.format("level0.dcm")),
    (begun_download, CANNOT_OPEN.format("level0.dcm")),
    (other_kind, CANNOT_OPEN.format("segmentation")),
    (other_label, CANNOT_OPEN.format("other-label")),
    (no_dicom, "a folder without DICOM files; name the file of the slide, or the folder of a DICOM series"),
    (
        many_files,
        "204 files in the folder of a DICOM slide; allowed: 200; put each series into a folder of its own",
    ),
]


@pytest.mark.parametrize(("spoil", "reason"), REFUSED, ids=[spoil.__name__ for spoil, _ in REFUSED])
def test_a_folder_that_is_not_one_whole_slide_is_quarantined(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    write_series(tmp_path / "series", tissue(), 0.5)
    spoil(tmp_path / "series")
    assert ingested(tmp_path / "series", tmp_path / "store") == SlideOutcome(
        "a", "quarantined", reason, 0, skipped=False
    )


def test_a_folder_that_was_mended_is_ingested(folder: Path, tmp_path: Path) -> None:
    other_kind(folder)
    assert ingested(folder, tmp_path / "store").status == "quarantined"
    assert ingested(folder, tmp_path / "store").skipped
    (folder / "segmentation").unlink()
    assert ingested(folder, tmp_path / "store").status == "ok"


def test_directories_of_media_and_hidden_files_are_left_out(folder: Path, tmp_path: Path) -> None:
    for name in ("DICOMDIR", ".level0.dcm.partial"):
        (folder / name).write_bytes(bytes(128) + b"DICM" + bytes(100))
    assert ingested(folder, tmp_path / "store").status == "ok"


@pytest.mark.parametrize("name", ["", "/level1.dcm"])
def test_a_folder_on_s3_is_copied_while_it_is_read(folder: Path, tmp_path: Path, s3: str, name: str) -> None:
    uri = f"{s3}/{uuid.uuid4().hex}/1.2.840.1"
    storage.upload_folder(folder, uri)
    storage.write_bytes(f"{uri}/below/notes.txt", b"in a folder below")
    ingested(folder, tmp_path / "local")
    assert ingested(uri + name, tmp_path / "remote").reason is None
    local, remote = record_of(tmp_path / "local"), record_of(tmp_path / "remote")
    assert remote.patches_digest == local.patches_digest
    assert remote.source is not None
    assert local.source is not None
    assert (remote.source.uri, remote.source.sha256) == (uri + name, local.source.sha256)
    assert ingested(uri + name, tmp_path / "remote").skipped
    before = source_version(uri + name)
    storage.write_bytes(f"{uri}/level2.dcm", (folder / "level1.dcm").read_bytes())
    assert source_version(uri + name) != before


class FileHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def serve_https(folder: Path, certificate: Path) -> http.server.HTTPServer:
    """A server of a folder's files, with a certificate of its own."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", f"{certificate}.key", "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    server = http.server.ThreadingHTTPServer(("localhost", 0), partial(FileHandler, directory=folder))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_a_file_on_https_is_refused_since_its_folder_cannot_be_listed(folder: Path, tmp_path: Path) -> None:
    """Alone it could be a coarse level of the slide."""
    server = serve_https(folder, tmp_path / "certificate.pem")
    uri = f"https://localhost:{server.server_port}/level1.dcm"
    (tmp_path / "m.csv").write_text(f"slide_id,uri,label\na,{uri},1\n")
    program = "from milcore.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, "ingest", str(tmp_path / "m.csv"), str(tmp_path / "store"), "--json"],
        env={**os.environ, "SSL_CERT_FILE": str(tmp_path / "certificate.pem")}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    assert "a: a DICOM slide on https://, where its folder cannot be listed; copy it to a disk or s3://" in ended.stderr


def test_partitions_count_all_files_of_a_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "series", tissue(), 0.5)
    total = sum(file.stat().st_size for file in (tmp_path / "series").iterdir())
    assert source_stat(str(tmp_path / "series")).size == total
    for k in range(2):
        (tmp_path / f"{k}.svs").write_bytes(bytes(total // 2))
    (tmp_path / "m.csv").write_text("slide_id,uri,label\na,0.svs,0\nb,1.svs,1\nc,series,1\n")
    store = PatchStore(str(tmp_path / "store"))
    plan_cohort(str(tmp_path / "m.csv"), store.uri)
    write_partitions(store.uri, 2)
    assert [[slide.slide_id for slide in read_partition(store, k, 2)] for k in range(2)] == [["c"], ["a", "b"]]


def test_label_and_patient_stay_out_of_the_store(folder: Path, tmp_path: Path) -> None:
    """The label's colour is in no picture, the patient's name in no byte."""
    with open_slide(folder / "label") as slide:
        assert slide.size == (WIDTH, HEIGHT)
    ingested(folder, tmp_path / "store")
    slide = PatchStore(str(tmp_path / "store")).slide("a")
    for pixels in (*slide.patches(0, len(slide)), slide.thumbnail):
        assert not (np.abs(pixels.astype(int) - LABEL).max(-1) < 60).any()
    files = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert len(files) > 5
    assert not [file for file in files if PATIENT.encode() in file.read_bytes()]


def test_the_slide_of_an_import_may_be_a_folder(folder: Path) -> None:
    image = read_slide_image(Slide("a", str(folder), 0, "a", "", None, None, None), None)
    assert isinstance(image, SlideImage)
    assert (image.size, image.mpp) == ((WIDTH, HEIGHT), 0.5)


def tiff_header(folder: Path) -> None:
    """Make level 1 a TIFF too, as some writers do: its first tile is the one tile of the TIFF."""
    path = folder / "level1.dcm"
    data = path.read_bytes()
    start = data.index(b"\xff\xd8\xff")
    size = data.index(b"\xff\xd9", start) + 2 - start
    tags = [
        (256, 256),
        (257, 256),
        (258, 8),
        (259, 7),
        (262, 6),
        (277, 3),
        (322, 256),
        (323, 256),
        (324, start),
        (325, size),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, len(data)) + data[8:] + directory + bytes(4))


def test_a_file_that_is_tiff_too_is_read_with_its_series(folder: Path, tmp_path: Path) -> None:
    tiff_header(folder)
    with Image.open(folder / "level1.dcm") as image:
        assert image.size == (256, 256)
    assert ingested(folder / "level1.dcm", tmp_path / "store").status == "ok"
    assert record_of(tmp_path / "store").size_level0 == (WIDTH, HEIGHT)
    with pytest.raises(SlideError, match="of tiff none recognises it"), open_slide(folder / "level1.dcm", "tiff"):
        pass


def test_a_link_out_of_the_allowed_folders_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").mkdir()
    shutil.move(folder / "level0.dcm", tmp_path / "secret/level0.dcm")
    (folder / "level0.dcm").symlink_to(tmp_path / "secret/level0.dcm")
    assert ingested(folder, tmp_path / "by-hand").status == "ok"
    monkeypatch.setenv("MILCORE_REMOTE", "1")
    monkeypatch.setenv("MILCORE_ALLOWED_ROOTS", str(folder))
    reason = ingested(folder, tmp_path / "in-a-pod").reason
    assert str(reason).startswith("expected a URI that data may name here, got a local path")


def test_a_real_slide_has_its_scale_and_pixels(shared_data: Path, tmp_path: Path) -> None:
    """50 px square, in 25 uncompressed frames of 10 px."""
    path = shared_data / "slides/sm_image.dcm"
    frames = pydicom.dcmread(path).pixel_array
    expected = frames.reshape(5, 5, 10, 10, 3).swapaxes(1, 2).reshape(50, 50, 3)
    shutil.copy(path, tmp_path / "sm_image.dcm")
    with open_slide(tmp_path / "sm_image.dcm") as slide:
        assert (slide.backend, slide.mpp) == ("openslide:dicom", 0.499)
        np.testing.assert_array_equal(slide.read(0, 0, 0, 50, 50), expected)
