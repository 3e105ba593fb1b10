"""Requests of several workers of one machine: a sweep, and training, with and without their cache on disk."""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

import milcore as mc
from milcore.runtime import storage
from milcore.store.disk_room import SIZE, USERS
from milcore.training.run_folder import Run
from tests.proxy import CountingProxy
from tests.requests.commands import MODEL, NO_CACHE_MB, upload, write_files

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SLIDES, TEST_SLIDES, TRIALS, EPOCHS = 20, 6, 4, 2
SETTINGS = {**MODEL, "features": "imported", "epochs": EPOCHS, "cache_mb": NO_CACHE_MB, "workers": 2}
CACHE_MB = 10.0
# of a worker, at its first bag, to learn the shape of an instance
LOOKS = 3


@pytest.fixture(scope="module")
def store(proxy: CountingProxy, s3: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, uri = tmp_path_factory.mktemp("sweep"), f"{s3}/requests/sweep"
    write_files(folder, SLIDES)
    upload(folder, f"{uri}/files")
    mc.import_cohort(f"{uri}/files/h5", f"{uri}/store", format="clam", labels=f"{uri}/files/labels.csv")
    return f"{uri}/store"


def reads_of(
    proxy: CountingProxy, folder: Path, command: str, store: str, out: str, **settings: object
) -> Counter[str]:
    """How often a command reads each object of features.

    It has a Ray of its own, whose workers reach the bucket through the proxy.

    Args:
        proxy: which the environment names.
        folder: of temporary files.
        command: train or tune.
        store: with the features.
        out: folder of the run or sweep.
        settings: besides those of all commands.
    """
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (SETTINGS | settings).items()]
    program = "from milcore.cli.main import main; main()"
    short = {"RAY_TMPDIR": tempfile.gettempdir()}  # paths of its sockets are bounded
    proxy.take()
    ended = subprocess.run(
        [sys.executable, "-c", program, command, store, out, *flags],
        capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(folder), **short},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    requests = [request for request in proxy.take().requests if request.kind == "GET"]
    return Counter(request.key for request in requests if "/features/imported/c/" in request.key)


def entries(folder: Path) -> set[str]:
    """Entries of the cache that a command left."""
    return {path.name for path in folder.glob("milcore-cache-*/*")} - {USERS, SIZE}


def test_trials_at_once_read_each_object_once(store: str, proxy: CountingProxy, tmp_path: Path) -> None:
    """By default, where two trials at a time share a machine."""
    shared = reads_of(proxy, tmp_path, "tune", store, f"{store}-sweep", trials=TRIALS)
    assert list(tmp_path.glob("milcore-cache-*"))
    assert entries(tmp_path) == set()
    assert set(shared.values()) == {1}
    assert len(shared) == SLIDES - TEST_SLIDES


@pytest.mark.long
def test_without_the_cache_each_trial_reads_every_object_in_every_epoch(
    store: str, proxy: CountingProxy, tmp_path: Path
) -> None:
    apart = reads_of(proxy, tmp_path, "tune", store, f"{store}-sweep-apart", trials=TRIALS, disk_cache_mb=0)
    assert len(apart) == SLIDES - TEST_SLIDES
    assert min(apart.values()) >= TRIALS


@pytest.mark.long
def test_two_workers_that_share_a_cache_read_each_object_once(store: str, proxy: CountingProxy, tmp_path: Path) -> None:
    shared = reads_of(proxy, tmp_path, "train", store, f"{store}-once", disk_cache_mb=CACHE_MB)
    assert set(shared.values()) == {1}
    assert len(shared) == SLIDES - TEST_SLIDES
    assert entries(tmp_path) == set()


@pytest.mark.long
def test_two_workers_read_no_more_than_one_process(store: str, proxy: CountingProxy, tmp_path: Path) -> None:
    """Each reads the features of its own bags; the cache on disk serves both, and changes no bit."""
    one = reads_of(proxy, tmp_path, "train", store, f"{store}-one", workers=0)
    two = reads_of(proxy, tmp_path, "train", store, f"{store}-two")
    assert entries(tmp_path) == set()
    shared = reads_of(proxy, tmp_path, "train", store, f"{store}-shared", disk_cache_mb=CACHE_MB)
    assert two.total() <= one.total() + LOOKS
    assert set(shared.values()) == {1}
    assert shared.keys() == one.keys()
    weights = [storage.read_bytes(Run(f"{store}-{name}").model_uri) for name in ("two", "shared")]
    assert weights[0] == weights[1]
    assert entries(tmp_path) == set()
