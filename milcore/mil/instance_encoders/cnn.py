"""Small trainable CNNs of Ilse et al. 2018, for any patch size.

``conv`` is their histology network, ``lenet5`` their network for digits. Deviations from the source: an adaptive
average pool before the first linear layer (identity for the paper's 27 and 28 px), so that one definition takes patches
of other edges; dropout once, after the encoder, in the model, keyed by instance. ReLU follows the max pooling, with
which it commutes, on a quarter of the values. Weights lie channels-last, as patches do.

Source: Ilse, Tomczak, Welling 2018, arXiv 1802.04712, appendix tables of the architectures; Sirinukunwattana et al.
2016; LeCun et al. 1998.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from milcore.mil.dropout import Mask, drop
from milcore.mil.instance_encoders.protocol import FeatureStatistics

PIXELS_PER_CHUNK = 1 << 17


class PixelEncoder(nn.Module):
    """CNN over patches as stored, scaled to -1 to 1.

    Patches are u1 with channels last.

    Args:
        layers: from (instance, channel, height, width) to (instance, hidden).
        grey: feed the mean of the three channels as the only one.
    """

    def __init__(self, layers: nn.Sequential, *, grey: bool) -> None:
        super().__init__()
        self.layers = layers
        for weights in (each for each in layers.parameters() if each.dim() == 4):
            weights.data = weights.data.to(memory_format=torch.channels_last)
        self.grey = grey

    def rows_per_chunk(self, instance: UInt8[Tensor, "instance height width 3"]) -> int:
        """Patches per chunk: their activations should nearly fit the processor's caches."""
        return max(1, PIXELS_PER_CHUNK // (instance.shape[1] * instance.shape[2]))

    def embedder(
        self, dtype: torch.dtype, stored: torch.dtype, scale: float
    ) -> Callable[[UInt8[Tensor, "instance height width 3"], Mask | None], Float[Tensor, "instance hidden"]]:
        """Function from patches to embeddings; bf16 products are taken by autocast.

        Args:
            dtype: of the products.
            stored: of the patches, u1.
            scale: of the embeddings, for those that the function's second argument, the mask, drops; 1 without.
        """
        del stored

        parameters = next(self.parameters()).dtype

        def embed(patches: Tensor, mask: Mask | None) -> Tensor:
            pixels = patches.permute(0, 3, 1, 2).to(parameters) / 127.5 - 1.0
            if self.grey:
                pixels = pixels.mean(dim=1, keepdim=True)
            with torch.autocast(patches.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                embeddings: Tensor = self.layers(pixels)
            return embeddings if mask is None else drop(embeddings * scale, mask)

        return embed

    def pretrained(self) -> list[nn.Parameter]:
        """None: every layer begins with random weights."""
        return []

    def prepare(self, statistics: FeatureStatistics) -> None:
        """Nothing to set up: pixels are scaled by constants."""
        del statistics


def conv(hidden: int) -> PixelEncoder:
    """CNN for H&E patches of at least 12 px.

    Convolutions of 36 and 48 channels, two linear layers.

    Args:
        hidden: width of both linear layers.
    """
    layers = nn.Sequential(
        *_convolutions(nn.Conv2d(3, 36, kernel_size=4), nn.Conv2d(36, 48, kernel_size=3), edge=5),
        nn.Linear(48 * 5 * 5, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
    )
    return PixelEncoder(layers, grey=False)


def lenet5(hidden: int) -> PixelEncoder:
    """LeNet-5 for grey patches of at least 16 px.

    Convolutions of 20 and 50 channels, one linear layer.

    Args:
        hidden: width of the linear layer.
    """
    layers = nn.Sequential(
        *_convolutions(nn.Conv2d(1, 20, kernel_size=5), nn.Conv2d(20, 50, kernel_size=5), edge=4),
        nn.Linear(50 * 4 * 4, hidden),
        nn.ReLU(),
    )
    return PixelEncoder(layers, grey=True)


def _convolutions(first: nn.Conv2d, second: nn.Conv2d, edge: int) -> list[nn.Module]:
    """Two convolutions with max pooling, then average pooling to ``edge`` x ``edge``."""
    halved = [nn.MaxPool2d(2), nn.ReLU()]
    return [first, *halved, second, *halved, nn.AdaptiveAvgPool2d(edge), nn.Flatten()]
