"""Decoding of stored JPEG patches on the GPU by nvJPEG (``decode=nvjpeg``).

nvJPEG comes with a torchvision built for CUDA. Its pixels may differ from libjpeg's by one or two levels, so it is
opt-in and recorded with the features.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from milcore.errors import InputError

Decode = Callable[[Sequence[UInt8[np.ndarray, " byte"]]], UInt8[Tensor, "patch height width 3"]]


def nvjpeg(encoder: str, device: torch.device) -> Decode:
    """Decoder of JPEG files of one size.

    Args:
        encoder: spec string, for messages.
        device: of the decoded patches.

    Raises:
        InputError: the device is no GPU, or torchvision is not installed.
    """
    if device.type != "cuda":
        raise InputError(
            f"encoder {encoder!r}: decode: expected a GPU for nvjpeg, got none; add --use-gpu, or take decode=cpu"
        )
    try:
        from torchvision.io import decode_jpeg  # noqa: PLC0415 - no part of the installation
    except (ImportError, RuntimeError) as error:
        # with a torch of another build the import raises RuntimeError
        raise InputError(
            f"encoder {encoder!r}: decode=nvjpeg needs torchvision for the torch that is installed, built for CUDA "
            f"({error}); or take decode=cpu"
        ) from None

    def decode(files: Sequence[UInt8[np.ndarray, " byte"]]) -> Tensor:
        data = [torch.from_numpy(file.copy()) for file in files]
        pictures: list[Tensor] = decode_jpeg(data, mode="RGB", device=device)
        return torch.stack(pictures).permute(0, 2, 3, 1).contiguous()

    return decode
