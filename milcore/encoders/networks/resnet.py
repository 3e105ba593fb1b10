"""ResNet-50 up to its third stage, averaged over space: 1024 features.

A common encoder of early slide-level MIL. Weights have torchvision's and timm's names. Source: He et al. 2016, arXiv
1512.03385, table 1 (the stride of a bottleneck at its 3 x 3 convolution, as in torchvision); cut after stage 3: Lu et
al. 2021, arXiv 2004.09666.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2))
EXPANSION = 4
UNUSED_PREFIXES = ("layer4.", "fc.")


class TruncatedResNet50(nn.Module):
    """ResNet-50 with global average pooling after the third stage."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        width = 64
        for number, (inner, blocks, stride) in enumerate(STAGES, start=1):
            first = _Bottleneck(width, inner, stride)
            width = inner * EXPANSION
            rest = (_Bottleneck(width, inner, 1) for _ in range(blocks - 1))
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))

    def forward(self, pixels: Float[Tensor, "patch 3 height width"]) -> Float[Tensor, "patch 1024"]:
        """Features of normalised images."""
        maps = self.maxpool(torch.relu(self.bn1(self.conv1(pixels))))
        for number in range(1, len(STAGES) + 1):
            maps = self.get_submodule(f"layer{number}")(maps)
        return torch.as_tensor(maps).mean(dim=(2, 3))


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with a shortcut."""

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = inner * EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(width, inner, kernel_size=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outer, kernel_size=1, bias=False), nn.BatchNorm2d(outer)
        self.downsample = nn.Sequential()
        if stride != 1 or width != outer:
            self.downsample = nn.Sequential(
                nn.Conv2d(width, outer, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, maps: Tensor) -> Tensor:
        inside = torch.relu(self.bn1(self.conv1(maps)))
        inside = torch.relu(self.bn2(self.conv2(inside)))
        return torch.relu(self.bn3(self.conv3(inside)) + self.downsample(maps))
