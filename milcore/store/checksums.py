"""Checksums of the chunks of an array.

Each chunk ends with the crc32c of its bytes, as Zarr's own codec ``crc32c`` writes it. The array's attribute ``crc32c``
holds the checksums of all chunks in their order, so that a chunk in another's place is noticed too: base64 of
little-endian 32-bit numbers.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from milcore.errors import DamageError

ATTRIBUTE = "crc32c"
CODEC = {"name": "crc32c"}
CHECKSUM_BYTES = 4
UInt8 = npt.NDArray[np.uint8]


def crc32c(data: bytes | UInt8) -> int:
    """The crc32c of some bytes."""
    return int(google_crc32c.value(data))


def checksum_bytes(checksum: int) -> bytes:
    """A checksum as it stands behind a chunk."""
    return checksum.to_bytes(CHECKSUM_BYTES, "little")


def checksum_attributes(checksums: Sequence[int]) -> dict[str, str]:
    """The attribute of an array with the checksums of its chunks, in order."""
    return {ATTRIBUTE: base64.b64encode(np.array(checksums, "<u4").tobytes()).decode()}


class Checksums:
    """Checksums of an array's chunks as its attributes hold them.

    Args:
        metadata: of the array.
        place: names the array in errors, such as ``slide 'S03': features/x``.
        remedy: command that makes the array again.
    """

    def __init__(self, metadata: Mapping[str, Any], place: str, remedy: str) -> None:
        text = metadata["attributes"].get(ATTRIBUTE)
        self.place = place
        self._remedy = remedy
        self._values = None if text is None else np.frombuffer(base64.b64decode(text, validate=True), "<u4")

    @property
    def are_recorded(self) -> bool:
        """False for an array of an earlier version, whose chunks cannot be checked."""
        return self._values is not None

    def check(self, chunk: int, data: UInt8, uri: str) -> UInt8:
        """The content of a chunk, without the checksum behind it.

        Args:
            chunk: number of the chunk.
            data: its stored bytes.
            uri: of the object that they were read from.

        Raises:
            DamageError: they are not the bytes that were written there.
        """
        if self._values is None:
            return data
        content, behind = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:].tobytes()
        checksum = crc32c(content)
        is_listed = chunk < len(self._values) and checksum == self._values[chunk]
        if not is_listed or checksum_bytes(checksum) != behind:
            raise self.damage(uri, f"expected chunk {chunk} as it was written, got other bytes (crc32c differs)")
        return content

    def damage(self, uri: str, problem: str) -> DamageError:
        """Error of an object of the array, with the remedy."""
        return DamageError(f"{self.place}: {uri}: {problem}; restore the object, or {self._remedy}")
