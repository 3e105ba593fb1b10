"""Slides: one protocol, one file per backend, and the pyramid writer. The only room that imports openslide."""

import struct
from pathlib import Path

from milcore.errors import SlideError
from milcore.slides.flat import FlatImageReader
from milcore.slides.openslide import OpenSlideReader
from milcore.slides.reader import SlideReader, read_area

__all__ = ["READERS", "SlideReader", "open_slide", "read_area"]

# the first that recognises a file reads it
READERS: dict[str, type[SlideReader]] = {"openslide": OpenSlideReader, "flat": FlatImageReader}


def open_slide(path: Path) -> SlideReader:
    """Open a slide by the first backend that knows its format.

    Raises:
        SlideError: why it cannot be opened; the text is the quarantine reason.
    """
    size = path.stat().st_size
    if size == 0:
        raise SlideError("empty file (0 bytes)")
    for reader in READERS.values():
        if reader.recognises(path):
            return reader(path)
    with path.open("rb") as file:
        raise SlideError(_unknown(file.read(16), size))


def _unknown(head: bytes, size: int) -> str:
    directory = _tiff_directory(head)
    if directory is not None and directory >= size:
        return f"truncated: the TIFF directory lies at byte {directory:,} of a file of {size:,} bytes"
    return f"not a slide in a known format: neither {' nor '.join(READERS)} recognises it (begins {head[:4]!r})"


def _tiff_directory(head: bytes) -> int | None:
    """Byte offset of the first directory of a TIFF or BigTIFF; None if the file is neither."""
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return None
    version = struct.unpack_from(f"{order}H", head, 2)[0]
    layout = {42: ("I", 4), 43: ("Q", 8)}.get(version)
    return int(struct.unpack_from(order + layout[0], head, layout[1])[0]) if layout else None
