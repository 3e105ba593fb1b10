"""Room of a disk cache: its bound, the disk's free space, eviction.

Where the bound is reached the entries go that were used longest ago, none that was used since this process began: more
objects than there is room for, read once an epoch, would else drive each other out before their next use. A file holds
the sum of the sizes, which one process changes at a time.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

# of a disk, that stay free: below it the kubelet removes pods from the node
FREE_SHARE = 0.1
# of the bound, evicted beyond what is needed, so that the folder is listed seldom
EVICTED_SHARE = 1 / 16
# files of the folder that are no entries
USERS, SIZE = "users", "size"
_BLOCK_BYTES = 4096


class DiskRoom:
    """Room in the folder of a cache.

    Args:
        folder: of the entries.
        most_bytes: of all of them.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._began = time.time()
        with self._size() as size:
            _write(size, sum(_disk_bytes(path) for path in entries(folder)))

    def lack(self, needed: int) -> str | None:
        """Make room for an entry and count it; the reason where there is none.

        Args:
            needed: bytes of the entry.
        """
        needed, disk = _blocks(needed), os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize - needed < FREE_SHARE * disk.f_blocks * disk.f_frsize:
            return f"less than {FREE_SHARE:.0%} of the disk would stay free"
        with self._size() as size:
            total = _number(size) + needed
            if total > self._most_bytes:
                total -= self._evict(total - self._most_bytes)
            fits = total <= self._most_bytes
            _write(size, total if fits else total - needed)
        return None if fits else f"its {self._most_bytes / 1e6:g} MB are in use"

    def _evict(self, needed: int) -> int:
        """Remove entries, used longest ago first; the bytes they had."""
        removed = 0
        for path in sorted(entries(self._folder), key=_used_at):
            if removed >= needed + self._most_bytes * EVICTED_SHARE or _used_at(path) >= self._began:
                break
            removed += _disk_bytes(path)
            path.unlink(missing_ok=True)
        return removed

    @contextlib.contextmanager
    def _size(self) -> Iterator[int]:
        """File of the sum, for one process and thread at a time."""
        file = os.open(self._folder / SIZE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def entries(folder: Path) -> list[Path]:
    """Files of all entries, complete or not."""
    return [path for path in folder.iterdir() if path.name not in {USERS, SIZE}]


def _used_at(path: Path) -> float:
    """Time of the last use; that of an entry removed meanwhile is long ago."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _disk_bytes(path: Path) -> int:
    try:
        return _blocks(path.stat().st_size)
    except FileNotFoundError:
        return 0


def _blocks(size: int) -> int:
    """Bytes that a file of a size takes on the disk."""
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def _number(file: int) -> int:
    text = os.pread(file, 32, 0)
    return int(text) if text.isdigit() else 0


def _write(file: int, number: int) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, str(number).encode(), 0)
