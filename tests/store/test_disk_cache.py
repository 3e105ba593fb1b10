"""A cache on disk: bounded, checked, shared by processes, and never an error."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from milcore.errors import DamageError
from milcore.store.checksums import UInt8, checksum_bytes, crc32c
from milcore.store.disk_cache import DiskCache, open_disk_cache, remove_entries
from milcore.store.disk_room import SIZE, USERS

BLOCK = 4096


def stored(content: bytes) -> bytes:
    """Content and the checksum behind it, as the store keeps a chunk."""
    return content + checksum_bytes(crc32c(content))


def check(data: UInt8) -> UInt8:
    if checksum_bytes(crc32c(data[:-4])) != data[-4:].tobytes():
        raise DamageError("expected the bytes that were written, got others")
    return data[:-4]


class Store:
    """Objects of a store, and how often each was read."""

    def __init__(self) -> None:
        self.reads: list[str] = []

    def fetch(self, name: str, size: int = 100) -> Callable[[], bytes]:
        def fetch() -> bytes:
            self.reads.append(name)
            return stored(name.encode().ljust(size, b"."))

        return fetch


def read(cache: DiskCache, store: Store, name: str, size: int = 100) -> bytes:
    return cache.read(name, store.fetch(name, size), check).tobytes().rstrip(b".")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {USERS, SIZE}


def age(folder: Path, *names: str) -> None:
    """The entries were used long ago, the first of them longest."""
    for seconds, name in enumerate(names):
        os.utime(folder / name, (seconds, seconds))


def test_an_object_is_read_from_the_store_once(tmp_path: Path) -> None:
    cache, store = DiskCache(tmp_path, 10 * BLOCK), Store()
    assert [read(cache, store, name) for name in ("a", "b", "a", "b")] == [b"a", b"b", b"a", b"b"]
    assert store.reads == ["a", "b"]
    assert names_in(tmp_path) == {"a", "b"}
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0
    assert read(DiskCache(tmp_path, 10 * BLOCK), store, "a") == b"a"
    assert store.reads == ["a", "b"]


@pytest.mark.parametrize("change", [lambda data: data[:-7], lambda data: b"x" + data[1:], lambda data: data[:0]])
def test_a_damaged_or_short_entry_is_read_anew(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    cache, store = DiskCache(tmp_path, 10 * BLOCK), Store()
    read(cache, store, "a")
    (tmp_path / "a").write_bytes(change((tmp_path / "a").read_bytes()))
    assert [read(cache, store, "a") for _ in range(2)] == [b"a", b"a"]
    assert store.reads == ["a", "a"]


def test_damage_in_the_store_is_an_error_and_no_entry(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10 * BLOCK)
    with pytest.raises(DamageError):
        cache.read("a", lambda: b"damaged", check)
    assert names_in(tmp_path) == set()


def test_what_this_process_used_is_not_evicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three objects, read in turn, where two have room: two are read once."""
    cache, store = DiskCache(tmp_path, 2 * BLOCK), Store()
    assert [read(cache, store, name) for name in "abcabc"] == [b"a", b"b", b"c", b"a", b"b", b"c"]
    assert store.reads == ["a", "b", "c", "c"]
    assert names_in(tmp_path) == {"a", "b"}
    assert capsys.readouterr().err.count("MB are in use; further features are read from the store each time") == 1


def test_entries_used_longest_ago_make_room_for_those_of_a_later_process(tmp_path: Path) -> None:
    store, earlier = Store(), DiskCache(tmp_path, 100 * BLOCK)
    for name in "abcd":
        read(earlier, store, name, 2 * BLOCK - 4)
    age(tmp_path, *"bcad")
    later = DiskCache(tmp_path, 8 * BLOCK)
    read(later, store, "b", 2 * BLOCK - 4)  # used now
    read(later, store, "e", 2 * BLOCK - 4)
    assert names_in(tmp_path) == {"b", "d", "e"}  # c, and a for a sixteenth of the bound more


def test_several_threads_and_caches_read_an_object_once(tmp_path: Path) -> None:
    caches, store = [DiskCache(tmp_path, 100 * BLOCK) for _ in range(2)], Store()
    names = [f"{k:02d}" for k in range(20)]
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(read, cache, store, name) for name in names for cache in caches * 4]
        assert [future.result().decode() for future in futures] == [name for name in names for _ in range(8)]
    assert sorted(store.reads) == names


def test_a_reader_that_fails_leaves_the_object_to_others(tmp_path: Path) -> None:
    cache, store, waits = DiskCache(tmp_path, 10 * BLOCK), Store(), threading.Event()

    def fail() -> bytes:
        waits.wait(60)
        raise OSError("the store is away")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.read, "a", fail, check)
        while "a.part" not in names_in(tmp_path):
            pass
        second = pool.submit(read, cache, store, "a")
        waits.set()
        with pytest.raises(OSError, match="the store is away"):
            first.result()
        assert second.result() == b"a"
    assert names_in(tmp_path) == {"a"}


KILLED = """
import os, sys
from pathlib import Path
from milcore.store.disk_cache import DiskCache
cache = DiskCache(Path(sys.argv[1]), 10 * 4096)
def fetch():
    sys.stdout.write("reading\\n"), sys.stdout.flush()
    sys.stdin.read()
cache.read("a", fetch, lambda data: data)
"""


def test_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    cache, store = DiskCache(tmp_path, 10 * BLOCK), Store()
    other = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        assert not remove_entries(tmp_path)
        other.kill()
    assert read(cache, store, "a") == b"a"
    assert names_in(tmp_path) == {"a"}


def test_a_disk_that_takes_no_more_costs_entries_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An entry of that name would be a folder; the next ones are not tried."""
    cache, store = DiskCache(tmp_path, 10 * BLOCK), Store()
    (tmp_path / "a").mkdir()
    assert [read(cache, store, name) for name in "aab"] == [b"a", b"a", b"b"]
    assert store.reads == ["a", "a", "b"]
    assert names_in(tmp_path) == {"a"}
    assert capsys.readouterr().err.count("further features are read from the store each time") == 1


def test_the_last_process_removes_the_entries(tmp_path: Path) -> None:
    first, second, store = DiskCache(tmp_path, 10 * BLOCK), DiskCache(tmp_path, 10 * BLOCK), Store()
    read(first, store, "a")
    first.close()
    assert names_in(tmp_path) == {"a"}
    second.close()
    assert names_in(tmp_path) == set()
    assert remove_entries(tmp_path)
    assert remove_entries(tmp_path / "none")


def test_a_folder_that_others_can_read_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "private").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    for name in ("open", "link", "none/below"):
        assert open_disk_cache(tmp_path / name, BLOCK) is None
    assert capsys.readouterr().err.count("features are read from the store each time") == 3
    cache = open_disk_cache(tmp_path / "own", BLOCK)
    assert cache is not None
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    assert open_disk_cache(tmp_path / "own", BLOCK) is cache


def test_content_is_bytes_of_the_store(tmp_path: Path) -> None:
    values = np.arange(9, dtype="<f4")
    cache = DiskCache(tmp_path, 10 * BLOCK)
    for _ in range(2):
        content = cache.read("a", lambda: stored(values.tobytes()), check)
        np.testing.assert_array_equal(content.view("<f4"), values)
