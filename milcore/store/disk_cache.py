"""Cache of a remote store's objects on this machine's disk.

The processes of a user share it. An entry is the object as it was read, under a name that says its content, so that it
is never out of date. Whoever reads it checks it as an object of the store: a short or damaged file is read anew from
there. One process reads an object, the others wait for its entry; the file that it writes is its lock. A cache that is
full, or a disk that takes no more, costs entries and is no error.
"""

import atexit
import contextlib
import fcntl
import functools
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from milcore.errors import DamageError
from milcore.runtime.progress import log_line
from milcore.store.checksums import UInt8
from milcore.store.disk_room import USERS, DiskRoom, entries

# for an entry that another process writes
MOST_WAIT_S = 30.0
SECONDS_BETWEEN_LOOKS = 0.01

# takes the content out of the bytes of an object, or raises DamageError
Check = Callable[[UInt8], UInt8]


class DiskCache:
    """Entries in a folder, up to a size.

    Args:
        folder: of this user alone.
        most_bytes: of all entries.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._users = os.open(folder / USERS, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._users, fcntl.LOCK_SH)
        self._room = DiskRoom(folder, most_bytes)
        self._takes_more = True

    def close(self) -> None:
        """Leave the folder; the last process that does removes the entries."""
        os.close(self._users)
        remove_entries(self._folder)

    def read(self, name: str, fetch: Callable[[], bytes], check: Check) -> UInt8:
        """Content of an object: of its entry, else of the store.

        Args:
            name: of the entry, another for each content.
            fetch: reads the object from the store.
            check: takes the content out of its bytes.

        Raises:
            DamageError: ``check`` raised it of the object in the store.
        """
        path, give_up = self._folder / name, time.monotonic() + MOST_WAIT_S
        while (content := _read_entry(path, check)) is None and self._takes_more and time.monotonic() < give_up:
            with self._claim(path) as part:
                if part is not None:
                    content = _read_entry(path, check)
                    return self._fill(part, path, fetch, check) if content is None else content
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return check(np.frombuffer(fetch(), np.uint8)) if content is None else content

    @contextlib.contextmanager
    def _claim(self, path: Path) -> Iterator[int | None]:
        """Open file of an entry to write; None while another has it."""
        try:
            file = os.open(_part(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            self._take_no_more(str(error))
            yield None
            return
        is_own = _lock(file) and _is_at(file, _part(path))
        try:
            yield file if is_own else None
        finally:
            if is_own and _is_at(file, _part(path)):
                _part(path).unlink(missing_ok=True)
            os.close(file)

    def _fill(self, part: int, path: Path, fetch: Callable[[], bytes], check: Check) -> UInt8:
        """Content of an object of the store; keep it where there is room."""
        data = fetch()
        content = check(np.frombuffer(data, np.uint8))
        try:
            reason = self._room.lack(len(data))
            if reason is None:
                _write(part, data)
                _part(path).rename(path)
        except FileNotFoundError:
            reason = None  # a process that began later took the file for an old one
        except OSError as error:
            reason = str(error)
        if reason is not None:
            self._take_no_more(reason)
        return content

    def _take_no_more(self, reason: str) -> None:
        if self._takes_more:
            self._takes_more = False
            log_line(f"disk cache {self._folder}: {reason}; further features are read from the store each time")


@functools.cache
def open_disk_cache(folder: Path, most_bytes: int) -> DiskCache | None:
    """The cache in a folder; None where it cannot be used.

    It is in use until this process ends.

    Args:
        folder: of this user alone; it is made where it is missing.
        most_bytes: of all entries.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(f"expected a folder of this user alone, got {stat.filemode(status.st_mode)}")
        cache = DiskCache(folder, most_bytes)
    except OSError as error:
        log_line(f"disk cache {folder}: {error}; features are read from the store each time")
        return None
    atexit.register(cache.close)
    return cache


def cache_folder() -> Path:
    """Folder of this user's cache, in that of temporary files (``TMPDIR``)."""
    return Path(tempfile.gettempdir(), f"milcore-cache-{os.geteuid()}")


def remove_entries(folder: Path, seconds: float = 0.0) -> bool:
    """Remove all entries of a folder; False where a process uses it.

    Args:
        folder: of a cache, or none.
        seconds: to wait for processes that end.
    """
    give_up = time.monotonic() + seconds
    with contextlib.suppress(FileNotFoundError), (folder / USERS).open("r+b") as users:
        while not _lock(users.fileno()):
            if time.monotonic() >= give_up:
                return False
            time.sleep(SECONDS_BETWEEN_LOOKS)
        for path in entries(folder):
            path.unlink(missing_ok=True)
    return True


def _read_entry(path: Path, check: Check) -> UInt8 | None:
    """Content of an entry, used now; None where none is whole."""
    try:
        with path.open("rb") as file:
            data = np.fromfile(file, np.uint8)
            os.utime(file.fileno())
        return check(data)
    except DamageError:
        path.unlink(missing_ok=True)
    except OSError:
        pass
    return None


def _part(path: Path) -> Path:
    """File of an entry until it is complete."""
    return path.with_name(f"{path.name}.part")


def _write(part: int, data: bytes) -> None:
    os.ftruncate(part, 0)
    with os.fdopen(os.dup(part), "wb") as file:
        file.write(data)


def _lock(file: int) -> bool:
    """Lock a file until it is closed; False where another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """True where an open file still has its path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
