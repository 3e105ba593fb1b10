"""Codecs of a patch's chunk: JPEG 4:4:4, zstd, or raw pixels.

``milcore_jpeg`` is the Zarr codec of such JPEG chunks. The checksum behind a chunk is not here (``checksums.py``).
"""

from dataclasses import dataclass
from typing import Any, Self

import imagecodecs
import numpy as np
import numpy.typing as npt
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration

from milcore.config import Codec
from milcore.errors import StoreError

ZSTD_LEVEL = 3
JPEG_CODECS: tuple[Codec, ...] = ("jpeg", "passthrough")
# by the number of samples per px
_JPEG_COLOURS = {3: imagecodecs.JPEG8.CS.RGB, 4: imagecodecs.JPEG8.CS.EXT_BGRX}
UInt8 = npt.NDArray[np.uint8]


def encode_patch(patch: UInt8, codec: Codec, quality: int) -> bytes:
    """Encode a patch as a JPEG file, a zstd frame, or raw pixels.

    JPEG is 4:4:4. With passthrough the tiles of the slide are copied; only a patch that is no such tile is encoded, as
    JPEG.

    Args:
        patch: (p, p, 3) RGB; for JPEG also (p, p, 4), BGRX: blue, green, red and a spare byte.
        codec: codec of the chunk.
        quality: JPEG quality, 1 to 100.
    """
    pixels = np.ascontiguousarray(patch)
    if codec in JPEG_CODECS:
        colours = _JPEG_COLOURS[pixels.shape[-1]]
        return bytes(
            imagecodecs.jpeg8_encode(pixels, quality, colorspace=colours, outcolorspace="YCBCR", subsampling="444")
        )
    if codec == "zstd":
        return bytes(imagecodecs.zstd_encode(pixels, level=ZSTD_LEVEL))  # type: ignore[arg-type] # any buffer
    return pixels.tobytes()


def decode_into(data: Any, codec: Codec, patch: UInt8) -> None:
    """Decode a chunk into ``patch`` (p, p, 3).

    The inverse of ``encode_patch``, up to the loss of JPEG.

    Args:
        data: any buffer of bytes; it is not copied.
        codec: codec of the chunk.
        patch: contiguous array to fill.

    Raises:
        StoreError: the chunk holds a patch of another size.
    """
    if codec in JPEG_CODECS:
        imagecodecs.jpeg8_decode(data, out=patch)
    elif codec == "zstd":
        size = len(imagecodecs.zstd_decode(data, out=patch.reshape(-1).data))
        if size != patch.size:
            raise StoreError(f"patch: expected {patch.size} bytes, got {size}; ingest the slide again")
    else:
        patch.reshape(-1)[:] = np.frombuffer(data, np.uint8)


def chunk_codecs(codec: Codec, quality: int) -> list[dict[str, Any]]:
    """Entries of a patch's codecs in an array's metadata, without the checksum."""
    if codec in JPEG_CODECS:
        return [dict(JpegCodec(quality).to_dict())]
    zstd = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
    return [{"name": "bytes"}, *([zstd] if codec == "zstd" else [])]


@dataclass(frozen=True)
class JpegCodec(ArrayBytesCodec):
    """Zarr v3 codec ``milcore_jpeg``: a uint8 RGB chunk as one JPEG file, 4:4:4.

    A chunk has shape (…, h, w, 3) whose leading axes are of length 1.

    Args:
        quality: JPEG quality, 1 to 100.
    """

    quality: int = 90
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Parse the codec's entry in an array's metadata."""
        _, configuration = parse_named_configuration(data, "milcore_jpeg", require_configuration=False)
        return cls(**(configuration or {}))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, JSON]:
        """Entry of the codec in an array's metadata."""
        return {"name": "milcore_jpeg", "configuration": {"quality": self.quality}}

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = imagecodecs.jpeg8_decode(chunk_data.to_bytes())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        pixels = chunk_data.as_numpy_array().reshape(chunk_spec.shape[-3:])
        return chunk_spec.prototype.buffer.from_bytes(encode_patch(pixels, "jpeg", self.quality))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raise: a JPEG's size is not known before encoding."""
        raise NotImplementedError
