"""JPEG tiles of a TIFF, made standalone JPEG files without recompression.

A TIFF may store quantisation and Huffman tables once for all tiles, and give the colour space by its photometric tag
alone. The surprise: put together naively, an RGB tile decodes to false colours, since a decoder takes three components
for YCbCr; an Adobe APP14 segment overrides that, but only where no JFIF segment stands before it.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from milcore.errors import SlideError

_SOI, _EOI, _SOS, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
_FRAMES = (0xC0, 0xC1, 0xC2)
_PROGRESSIVE = 0xC2
# inside compressed pixels 0xFF is followed by a stuffed zero, a restart marker or a fill byte
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class Segment(NamedTuple):
    """A header segment: its marker, and its byte range with the marker."""

    marker: int
    start: int
    stop: int


class Header(NamedTuple):
    """The header of a JPEG.

    Width and height are in px; ``scan`` is the offset of the compressed pixels.
    """

    width: int
    height: int
    components: int
    progressive: bool
    jfif: bool
    segments: tuple[Segment, ...]
    scan: int


def read_header(data: bytes) -> Header:
    """The header of a JPEG tile.

    Raises:
        SlideError: it is no JPEG of 8 bits a sample with a known frame, or ends early.
    """
    segments = _segments(data)
    frame = next((segment for segment in segments if segment.marker in _FRAMES), None)
    if frame is None or frame.stop - frame.start < 10 or data[frame.start + 4] != 8:
        raise SlideError("a tile is no JPEG of 8 bits a sample")
    height = int.from_bytes(data[frame.start + 5 : frame.start + 7])
    width = int.from_bytes(data[frame.start + 7 : frame.start + 9])
    jfif = any(
        segment.marker == _APP0 and data[segment.start + 4 : segment.start + 8] == b"JFIF" for segment in segments
    )
    progressive = frame.marker == _PROGRESSIVE
    return Header(width, height, data[frame.start + 9], progressive, jfif, segments, segments[-1].stop)


def standalone_jpeg(data: bytes, header: Header, tables: bytes | None, *, rgb: bool) -> bytes:
    """The tile as a JPEG file that every decoder shows in true colours.

    Args:
        data: the tile's bytes.
        header: of ``data``.
        tables: as ``shared_tables`` returns them.
        rgb: True where the components are red, green and blue, False where YCbCr.

    Raises:
        SlideError: the compressed pixels are damaged or end early.
    """
    _check_scan(data, header)
    segments = [data[part.start : part.stop] for part in header.segments if part.marker not in (_APP0, _APP14)]
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x00" if rgb else b"\x01")
    return b"".join([b"\xff\xd8", adobe, tables[2:-2] if tables else b"", *segments, data[header.scan :]])


def shared_tables(tables: bytes | None) -> bytes | None:
    """A TIFF's JPEGTables, their segments alone between SOI and EOI.

    Bytes after EOI, with which some writers pad them, would lie between the segments of a tile's header. Segments on
    the colour space are left out: the TIFF's photometric tag tells it.
    """
    if not tables:
        return None
    segments = [tables[part.start : part.stop] for part in _walk(tables) if part.marker not in (_APP0, _APP14)]
    return b"".join([bytes((0xFF, _SOI)), *segments, bytes((0xFF, _EOI))])


def _segments(data: bytes) -> tuple[Segment, ...]:
    """The header segments after SOI, up to and with SOS."""
    if data[:2] != bytes((0xFF, _SOI)):
        raise SlideError("a tile is no JPEG")
    segments = tuple(_walk(data))
    if not segments or segments[-1].marker != _SOS:
        raise SlideError("a tile's JPEG header is damaged or ends early")
    return segments


def _walk(data: bytes) -> Iterator[Segment]:
    """The segments after SOI, up to SOS, EOI or bytes that are none."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _EOI:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        stop = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield Segment(data[at + 1], at, stop)
        if data[at + 1] == _SOS:
            return
        at = stop


def _check_scan(data: bytes, header: Header) -> None:
    """Check that the compressed pixels run to EOI without other markers.

    Nothing is decoded.

    Raises:
        SlideError: they do not.
    """
    if header.progressive:
        whole = data.rstrip(b"\x00").endswith(bytes((0xFF, _EOI)))
    else:
        marker = _MARKER_IN_SCAN.search(data, header.scan)
        whole = marker is not None and data[marker.start() + 1] == _EOI
    if not whole:
        raise SlideError("a tile's JPEG is damaged or ends early")
