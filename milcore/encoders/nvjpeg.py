"""``decode=nvjpeg``: stored JPEG patches decoded on the GPU by nvJPEG, which torchvision built for CUDA brings.

Its pixels may differ from libjpeg's by a level or two, so it is asked for by name, and told with the features.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from milcore.errors import InputError

Decode = Callable[[Sequence[UInt8[np.ndarray, " byte"]]], UInt8[Tensor, "patch height width 3"]]


def nvjpeg(encoder: str, device: torch.device) -> Decode:
    """A decoder of JPEG files of one size.

    Args:
        encoder: that asks for it, for messages.
        device: where the patches are wanted.

    Raises:
        InputError: the device is no GPU, or torchvision is not there.
    """
    if device.type != "cuda":
        raise InputError(f"encoder {encoder!r}: decode=nvjpeg needs a GPU; add --use-gpu, or take decode=cpu")
    try:
        from torchvision.io import decode_jpeg  # noqa: PLC0415 - no part of the installation
    except (ImportError, RuntimeError) as error:
        # beside a torch of another build the import ends in a RuntimeError
        raise InputError(
            f"encoder {encoder!r}: decode=nvjpeg needs torchvision for the torch that is installed, built for CUDA "
            f"({error}); or take decode=cpu"
        ) from None

    def decode(files: Sequence[UInt8[np.ndarray, " byte"]]) -> Tensor:
        data = [torch.from_numpy(file.copy()) for file in files]
        pictures: list[Tensor] = decode_jpeg(data, mode="RGB", device=device)
        return torch.stack(pictures).permute(0, 2, 3, 1).contiguous()

    return decode
