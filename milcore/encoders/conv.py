"""The small trainable CNN of Ilse et al. 2018 for histology, made to fit any patch size.

conv(36, 4) - ReLU - maxpool 2 - conv(48, 3) - ReLU - maxpool 2 - adaptive average pool to 5 x 5 - (fc - ReLU) twice.
Deviation from the source: the adaptive pooling (identity for the paper's 27 x 27 patches), so that one definition takes
patches of any edge of at least 12 px; dropout follows the encoder in the model, keyed by instance.

Source: Ilse, Tomczak, Welling 2018, arXiv 1802.04712, appendix table for the histology data sets; Sirinukunwattana et
al. 2016.
"""

from typing import cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PATCHES_PER_CHUNK = 32


class ConvEncoder(nn.Module):
    """Embeddings of raw patches; activations are recomputed chunk by chunk, so memory does not grow with the bag."""

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

    def forward(self, patches: UInt8[Tensor, "instance height width 3"]) -> Float[Tensor, "instance hidden"]:
        """Embeddings of patches as stored: u1, channels last."""
        return torch.cat([self._checkpointed(chunk) for chunk in torch.split(patches, PATCHES_PER_CHUNK)])

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' precision."""
        return next(self.parameters()).dtype

    def _checkpointed(self, patches: Tensor) -> Tensor:
        # without randomness inside there is no generator state to put back
        return cast("Tensor", checkpoint(self._embed, patches, use_reentrant=False, preserve_rng_state=False))

    def _embed(self, patches: Tensor) -> Tensor:
        pixels = patches.permute(0, 3, 1, 2).to(self.dtype) / 127.5 - 1.0
        embeddings: Tensor = self.layers(pixels)
        return embeddings
