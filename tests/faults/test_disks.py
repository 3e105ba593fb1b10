"""A full, a read-only and a slow disk: one line and an exit code, and the same command goes on when there is room."""

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.proxy import FaultyProxy
from tests.faults.test_kills import Cohorts, Runs, cohort_at, differences, is_one_line

__all__ = ["cohort_at"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def folder_on(disk: Path, place: Path) -> Iterator[str]:
    """A folder of the disk at a place as deep as that of the undisturbed run: a store holds paths from itself."""
    for folder in (disk / "out", place):
        folder.mkdir()
    subprocess.run(["mount", "--bind", str(disk / "out"), str(place)], check=True)
    try:
        yield str(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def full(place: Path) -> Iterator[None]:
    """The disk with room for 20 kB."""
    room = os.statvfs(place)
    (place / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize - 20_000))
    yield
    (place / "filler").unlink()


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    """The disk without the right to write."""
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)


@pytest.mark.parametrize("fault", [full, read_only])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "tune"])
def test_a_disk_that_takes_no_more_ends_a_command_with_a_line(
    name: str, fault: "contextlib._GeneratorContextManager[None]", disk: Path, cohort_at: Cohorts
) -> None:
    cohort = cohort_at("local")
    runs = Runs(cohort, COMMANDS[name])
    with folder_on(disk, Path(cohort.uri, uuid.uuid4().hex)) as out:
        runs.begin(out)
        with fault(disk):
            child = runs.start(out)
            code = child.end()
        assert code in (1, 2), (code, child.log)
        assert is_one_line(child.log), child.log
        assert "Traceback" not in child.log, child.log
        assert differences(runs.end(runs.start(out), out), runs.undisturbed) == []


@pytest.mark.parametrize("name", ["import", "train"])
def test_slow_storage_changes_nothing(name: str, cohort_at: Cohorts) -> None:
    runs = Runs(cohort_at("s3"), COMMANDS[name])
    out = runs.new_folder()
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
    proxy.stall_s = 0.05
    assert differences(runs.end(runs.start(out, endpoint=proxy.url), out), runs.undisturbed) == []
    proxy.close()
