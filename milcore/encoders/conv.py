"""The small trainable CNN of Ilse et al. 2018 for histology, made to fit any patch size.

conv(36, 4) - ReLU - maxpool 2 - conv(48, 3) - ReLU - maxpool 2 - adaptive average pool to 5 x 5 - (fc - ReLU) twice.
Deviation from the source: the adaptive pooling (identity for the paper's 27 x 27 patches), so that one definition takes
patches of any edge of at least 12 px; dropout follows the encoder in the model, keyed by instance.

Source: Ilse, Tomczak, Welling 2018, arXiv 1802.04712, appendix table for the histology data sets; Sirinukunwattana et
al. 2016.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from milcore.dropout import Mask, drop

PATCHES_PER_CHUNK = 32


class ConvEncoder(nn.Module):
    """Embeddings of raw patches, u1 and channels last as stored."""

    chunk_rows = PATCHES_PER_CHUNK

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 36, kernel_size=4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(36, 48, kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(5),
            nn.Flatten(),
            nn.Linear(48 * 5 * 5, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )

    def embedder(
        self, dtype: torch.dtype, stored: torch.dtype, scale: float
    ) -> Callable[[UInt8[Tensor, "instance height width 3"], Mask | None], Float[Tensor, "instance hidden"]]:
        """Embeddings of patches; products in ``dtype``, in bf16 by autocast.

        Args:
            dtype: of the products.
            stored: of the patches, u1.
            scale: of the embeddings, for those that the function's second argument, the mask, drops; 1 without.
        """
        del stored

        parameters = next(self.parameters()).dtype

        def embed(patches: Tensor, mask: Mask | None) -> Tensor:
            pixels = patches.permute(0, 3, 1, 2).to(parameters) / 127.5 - 1.0
            with torch.autocast(patches.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                embeddings: Tensor = self.layers(pixels)
            return embeddings if mask is None else drop(embeddings * scale, mask)

        return embed
