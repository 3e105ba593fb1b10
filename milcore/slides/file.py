"""Random access to the bytes of a slide file, local or remote.

A remote file is read by ranges, in blocks of which the last few are cached: memory does not grow with the slide, and a
row of tiles, which mostly lie beside one another, is one request.
"""

import io
import os
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from milcore.errors import UnreachableSlideError
from milcore.runtime import storage
from milcore.slides.source import with_retries
from milcore.slides.tile_cache import LruCache

BLOCK_MB = 2
CACHED_BLOCKS = 32


class ByteReader(Protocol):
    """An open file with random access. Threads may read it at the same time."""

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on; fewer at the end of the file."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


class LocalFile:
    """A file on the local disk."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on; fewer at the end of the file."""
        return os.pread(self._file, size, offset)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)


class RemoteFile:
    """An object in remote storage, read in place.

    Args:
        uri: of the object.
        size: in bytes.
        etag: of its content.
    """

    def __init__(self, uri: str, size: int, etag: str) -> None:
        self.uri, self.size, self.etag = uri, size, etag
        self._block = int(BLOCK_MB * (1 << 20))
        self._blocks: LruCache[int, bytes] = LruCache(self._fetch, CACHED_BLOCKS)

    @classmethod
    def find(cls, uri: str) -> Self | None:
        """The object at a URI; None for a local file or storage without ETags.

        Raises:
            UnreachableSlideError: the storage cannot be read.
        """
        if storage.is_local(uri):
            return None
        etag = with_retries(uri, lambda: storage.etag(uri))
        return cls(uri, with_retries(uri, lambda: storage.stat(uri)).size, etag) if etag else None

    def check_unchanged(self) -> None:
        """Check that the object still has the ETag it was opened with.

        Raises:
            UnreachableSlideError: the object was replaced while it was read.
        """
        if with_retries(self.uri, lambda: storage.etag(self.uri)) != self.etag:
            raise UnreachableSlideError(f"{self.uri} was replaced while it was read; ingest again")

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on; fewer at the end of the file.

        Raises:
            UnreachableSlideError: the storage fails, several times.
        """
        stop = min(offset + size, self.size)
        if offset < 0 or offset >= stop:
            return b""
        first, last = offset // self._block, (stop - 1) // self._block
        data = b"".join(self._blocks.get(number) for number in range(first, last + 1))
        return data[offset - first * self._block : stop - first * self._block]

    def close(self) -> None:
        """Do nothing: no connection stays open."""

    def _fetch(self, number: int) -> bytes:
        start = number * self._block
        return with_retries(self.uri, lambda: storage.read_range(self.uri, start, min(start + self._block, self.size)))


class _Stream(io.RawIOBase):
    """A remote file as a raw stream, for tifffile."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # io.BufferedReader passes a memoryview
        data = self._file.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


SlideFile = Path | RemoteFile


def open_bytes(file: SlideFile) -> ByteReader:
    """Open the file for random access."""
    return LocalFile(file) if isinstance(file, Path) else file


def open_stream(file: SlideFile) -> BinaryIO:
    """Open the file as a binary stream."""
    return file.open("rb") if isinstance(file, Path) else io.BufferedReader(_Stream(file))
