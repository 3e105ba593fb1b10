"""Slide readers, one per backend behind one protocol, and the pyramid writer.

The only room that imports openslide.
"""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

from milcore.config import MAX_SLIDE_EDGE_PX, MAX_SLIDE_GIGAPIXELS, ReaderChoice, ReaderName
from milcore.errors import SlideError
from milcore.slides.file import RemoteFile, SlideFile
from milcore.slides.foreign import foreign_format
from milcore.slides.image import FlatImageReader
from milcore.slides.openslide import OpenSlideReader
from milcore.slides.reader import SlideReader, read_area
from milcore.slides.tiff import TiffReader

__all__ = ["READERS", "RemoteFile", "SlideReader", "find_remote_slide", "open_slide", "read_area"]

# tried in this order: the first backend that recognises a file reads it
READERS: dict[ReaderName, type[SlideReader]] = {
    "tiff": TiffReader,
    "openslide": OpenSlideReader,
    "flat": FlatImageReader,
}


def find_remote_slide(uri: str, reader: ReaderChoice = "auto") -> RemoteFile | None:
    """A remote tiled TIFF, read in place; None where it must be copied.

    Raises:
        UnreachableSlideError: the storage cannot be read.
    """
    file = RemoteFile.find(uri) if reader in {"auto", "tiff"} else None
    return file if file is not None and file.size and TiffReader.recognises(file) else None


@contextlib.contextmanager
def open_slide(path: SlideFile, reader: ReaderChoice = "auto") -> Iterator[SlideReader]:
    """Open a slide; it is closed when the context ends.

    Args:
        path: of the slide's file; or the result of ``find_remote_slide``.
        reader: auto is the first backend that recognises the format.

    Raises:
        SlideError: the file cannot be opened; the text is the quarantine reason.
    """
    slide = TiffReader(path) if isinstance(path, RemoteFile) else _open_local(path, reader)
    try:
        _check_size(*slide.size)
        yield slide
    finally:
        slide.close()


def _check_size(width: int, height: int) -> None:
    """Check the size that a file declares.

    Raises:
        SlideError: no scanner makes such a slide.
    """
    if not (0 < width <= MAX_SLIDE_EDGE_PX and 0 < height <= MAX_SLIDE_EDGE_PX):
        raise SlideError(f"declares {width:,} x {height:,} px; allowed: an edge of 1 to {MAX_SLIDE_EDGE_PX:,} px")
    if width * height > MAX_SLIDE_GIGAPIXELS * 1e9:
        raise SlideError(f"declares {width:,} x {height:,} px; allowed: {MAX_SLIDE_GIGAPIXELS} gigapixels")


def _open_local(path: Path, reader: ReaderChoice) -> SlideReader:
    backend = _backend(path, reader)
    try:
        return backend(path)
    except SlideError as error:
        conversion = foreign_format(path.name, _head(path))
        raise SlideError(f"{error}: {conversion}") if conversion else error from None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _backend(path: Path, reader: ReaderChoice) -> type[SlideReader]:
    size = path.stat().st_size
    if size == 0:
        raise SlideError("empty file (0 bytes)")
    backends = READERS.items() if reader == "auto" else [(reader, READERS[reader])]
    for _, backend in backends:
        if backend.recognises(path):
            return backend
    head = _head(path)
    raise SlideError(
        foreign_format(path.name, head) or _unrecognised_reason(head, size, [name for name, _ in backends])
    )


def _unrecognised_reason(head: bytes, size: int, tried: list[str]) -> str:
    directory = _tiff_directory(head)
    if directory is not None and directory >= size:
        return f"truncated: the TIFF directory lies at byte {directory:,} of a file of {size:,} bytes"
    return f"not a slide in a known format: of {', '.join(tried)} none recognises it"


def _tiff_directory(head: bytes) -> int | None:
    """Byte offset of the first directory of a TIFF or BigTIFF; else None."""
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return None
    version = struct.unpack_from(f"{order}H", head, 2)[0]
    layout = {42: ("I", 4), 43: ("Q", 8)}.get(version)
    return int(struct.unpack_from(order + layout[0], head, layout[1])[0]) if layout else None
