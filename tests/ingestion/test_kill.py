"""Killed at any moment and run again, ingestion ends in the same slide groups; nothing half-done is ever readable."""

import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from milcore.config import IngestConfig
from milcore.ingestion.cohort import ingest, plan_cohort
from milcore.ingestion.slide import ingest_slide
from milcore.runtime import storage
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.slide_row import read_rows
from milcore.store.store import PatchStore

CONFIG = IngestConfig(patch_size=64, codec="none")
SLIDES = 3
SHARD_MB = 50 * 64 * 64 * 3 / 1e6 + 1e-4
CHILD = """
import sys
import milcore.store.shards
from milcore.config import IngestConfig
from milcore.ingestion.cohort import ingest
from milcore.runtime.storage import exists
milcore.store.shards.SHARD_MB = float(sys.argv[3])
exists(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for outcome in ingest(sys.argv[1], IngestConfig.model_validate_json(sys.argv[2]), 0):
    pass
"""


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slides of 196 patches, in shards of 50 so that there are several moments to be killed between."""
    monkeypatch.setattr("milcore.store.shards.SHARD_MB", SHARD_MB)
    rows = ["slide_id,uri,label"]
    for k in range(SLIDES):
        y, x = np.mgrid[:900, :900]
        pixels = np.stack([200 - x % 60, 120 + (y + 9 * k) % 40, np.full_like(x, 170)], -1).astype(np.uint8)
        write_pyramid(tmp_path / f"{k}.tiff", pixels, 0.5, 1)
        rows.append(f"s{k},{k}.tiff,1")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "manifest.csv"


def _start(store: str, config: IngestConfig) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", CHILD, store, config.model_dump_json(), str(SHARD_MB)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def _go(child: "subprocess.Popen[bytes]") -> None:
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.flush()


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.communicate()


def _groups(store: str) -> dict[str, bytes]:
    uris = sorted(uri for uri in storage.files(store) if "/slides/" in uri)
    return {uri.removeprefix(store): data for uri, data in storage.read_all(uris).items()}


def _check_readable(store: str, expected: dict[str, bytes]) -> None:
    """A group that says it is complete is all there."""
    store_of_slides = PatchStore(store)
    for slide_id, record in store_of_slides.records().items():
        if record is not None:
            prefix = f"/slides/{slide_id}.zarr/"
            kept = {name: data for name, data in _groups(store).items() if name.startswith(prefix)}
            assert {name: data for name, data in expected.items() if name.startswith(prefix)}.items() <= kept.items()


def _check_catalogue(store: str) -> None:
    """What the catalogue says is what the slides say."""
    catalogue = PatchStore(store).catalogue()
    known = [slide_id for slide_id in catalogue.all_ids if catalogue.has_row(slide_id)]
    assert {slide_id: catalogue.row(slide_id) for slide_id in known} == read_rows(store, known)
    assert dict(catalogue.records) == {slide_id: PatchStore(store).record(slide_id) for slide_id in catalogue.all_ids}


def _ingest_whole(manifest: Path, store: str, config: IngestConfig = CONFIG) -> dict[str, bytes]:
    plan_cohort(str(manifest), store)
    assert all(outcome.status == "ok" for outcome in ingest(store, config, 0))
    return _groups(store)


def _kill_and_resume(manifest: Path, new_store: Callable[[], str], kills: int) -> None:
    reference = new_store()
    start = time.monotonic()
    expected = _ingest_whole(manifest, reference)
    duration_s = time.monotonic() - start
    generator = random.Random(7)  # noqa: S311 - a moment, not a secret
    for _ in range(kills):
        store = new_store()
        plan_cohort(str(manifest), store)
        child = _start(store, CONFIG)
        _go(child)
        time.sleep(generator.uniform(0.0, duration_s))
        child.send_signal(signal.SIGKILL)
        _end(child)
        _check_readable(store, expected)
        _check_catalogue(store)
        assert _ingest_whole(manifest, store) == expected
        _check_catalogue(store)
        assert PatchStore(store).catalogue().unknown_ids == []


def _stores(uri: str) -> Callable[[], str]:
    return lambda: storage.join(uri, uuid.uuid4().hex)


@pytest.mark.slow
def test_a_killed_ingestion_resumes(cohort: Path, folder_uri: str) -> None:
    _kill_and_resume(cohort, _stores(folder_uri), 3)


@pytest.mark.long
def test_ingestion_killed_a_hundred_times_resumes(cohort: Path, folder_uri: str) -> None:
    _kill_and_resume(cohort, _stores(folder_uri), 100 if storage.is_local(folder_uri) else 20)


def test_a_kill_between_the_last_slide_and_the_catalogue(cohort: Path, folder_uri: str) -> None:
    """Every slide is there and no row: the slides are read, and the next run writes their rows."""
    store = PatchStore(storage.join(folder_uri, "store"))
    plan_cohort(str(cohort), store.uri)
    rows = store.row_writer("ingest", [f"s{k}" for k in range(SLIDES)])  # never closed
    for slide in store.manifest().slides:
        assert ingest_slide(slide, store, CONFIG).status == "ok"
    del rows
    assert store.catalogue().unknown_ids == [f"s{k}" for k in range(SLIDES)]
    assert len(store.slide_ids()) == SLIDES
    assert all(outcome.skipped for outcome in ingest(store.uri, CONFIG, 0))
    _check_catalogue(store.uri)
    assert store.catalogue().unknown_ids == []


@pytest.mark.slow
def test_two_writers_of_the_same_slides_end_as_one(cohort: Path, folder_uri: str) -> None:
    expected = _ingest_whole(cohort, storage.join(folder_uri, "one"))
    store = storage.join(folder_uri, "two")
    plan_cohort(str(cohort), store)
    children = [_start(store, CONFIG) for _ in range(2)]
    for child in children:
        _go(child)
    for child in children:
        _end(child)
        assert child.returncode == 0
    assert _groups(store) == expected
    PatchStore(store).join_catalogue()
    assert PatchStore(store).catalogue().unknown_ids == []
    _check_catalogue(store)


def test_other_parameters_end_as_if_they_had_been_the_first(cohort: Path, tmp_path: Path) -> None:
    """What an earlier ingestion wrote beyond the new one is gone: more shards, features, a writer's partial file."""
    other = CONFIG.model_copy(update={"patch_size": 128})
    expected = _ingest_whole(cohort, str(tmp_path / "fresh"), other)
    store = str(tmp_path / "again")
    _ingest_whole(cohort, store)
    slide = PatchStore(store).slide("s0")
    slide.write_features("f", np.zeros((len(slide), 2), np.float16), {})
    Path(slide.uri, "patches/c/0/0/0/.0.half.partial").write_bytes(b"half")
    assert _ingest_whole(cohort, store, other) == expected
