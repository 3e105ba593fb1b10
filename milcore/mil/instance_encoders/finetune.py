"""Fine-tuning of pretrained networks, whole or in their last blocks.

The network stays in evaluation mode: batch normalisation uses its running statistics and there is no dropout inside, so
the embedding of a patch depends on no other patch and batches may be cut into chunks and dealt to ranks. Layers below
the trained blocks save no activations.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from milcore.config import TrainableEncoderName
from milcore.encoders.frozen import load_parts, transform_of
from milcore.encoders.spec import parse_spec
from milcore.errors import InputError, StoreError
from milcore.mil.dropout import Mask, drop
from milcore.mil.instance_encoders.protocol import FeatureStatistics
from milcore.store.slide_group import SlideGroup

PATCHES_PER_CHUNK = 8
_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")


class PretrainedEncoder(nn.Module):
    """``h = ReLU(W f(x) + b)`` with f a pretrained network.

    Args:
        spec: the spec string of f.
        hidden: width of the embedding.
        train_blocks: number of last blocks that are trained; None for the whole network.
    """

    def __init__(self, spec: str, hidden: int, train_blocks: int | None) -> None:
        super().__init__()
        parts = load_parts(parse_spec(spec), torch.device("cpu"))
        if not isinstance(parts.network, nn.Module):
            raise InputError(
                f"encoder: expected a trainable network, got the ONNX graph {spec!r}; allowed: the other kinds, or "
                "milcore encode"
            )
        self.network = parts.network.eval()
        self.transform = parts.transform
        learn_from(self.network, train_blocks)
        with torch.no_grad():
            edge = self.transform.input_px or 224
            width = self.network(torch.zeros(1, 3, edge, edge)).shape[1]
        self.project = nn.Linear(width, hidden)

    def pretrained(self) -> list[nn.Parameter]:
        """All parameters of the network; the projection is initialised at random."""
        return list(self.network.parameters())

    def prepare(self, statistics: FeatureStatistics) -> None:
        """Nothing to set up: pixels are scaled by the network's own constants."""
        del statistics

    def rows_per_chunk(self, instance: UInt8[Tensor, "instance height width 3"]) -> int:
        """Patches per chunk."""
        del instance
        return PATCHES_PER_CHUNK

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
        parameters = self.project.weight.dtype

        def embed(patches: Tensor, mask: Mask | None) -> Tensor:
            pixels = self.transform(patches).to(parameters)
            with torch.autocast(patches.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                embeddings = torch.relu(self.project(self.network(pixels)))
            return embeddings if mask is None else drop(embeddings * scale, mask)

        return embed


def learn_from(network: nn.Module, train_blocks: int | None) -> None:
    """Require gradients of the last blocks and the layers after them only.

    Blocks are the longest numbered list among the names of the network's parameters, in the order of the network.

    Args:
        network: to train.
        train_blocks: number of last blocks; None for the whole network.

    Raises:
        InputError: the network has fewer blocks, or none that are numbered.
    """
    named = list(network.named_parameters())
    network.requires_grad_(requires_grad=train_blocks is None)
    if train_blocks is None:
        return
    prefix, count = _blocks([name for name, _ in named])
    if train_blocks > count:
        raise InputError(
            f"train_blocks: expected at most {count}, the blocks of the network, got {train_blocks}; allowed: 0 to "
            f"{count}, or none for all"
        )
    first = next((k for k, (name, _) in enumerate(named) if _is_in(name, prefix, count - train_blocks)), None)
    if train_blocks == 0 or first is None:
        return
    for _, parameter in named[first:]:
        parameter.requires_grad_()


def check_patches(spec: str, slide: SlideGroup) -> None:
    """Check that patches have the scale of a pretrained encoder.

    Encoders trained from random weights take any scale.

    Raises:
        StoreError: the patches have another scale, or the slide has no patches.
    """
    if spec in get_args(TrainableEncoderName):
        return
    if slide.patch_size is None:
        raise StoreError(
            f"slide {slide.slide_id!r}: expected patches, got an import without them; train on its features"
        )
    transform_of(parse_spec(spec)).check_scale(slide.slide_id, slide.patch_size, slide.record.patch_mpp)


def _blocks(names: list[str]) -> tuple[str, int]:
    """Prefix and length of the longest numbered list; the outermost of equals."""
    numbers: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        for match in _NUMBER.finditer(name):
            numbers[name[: match.start()]].add(match.group())
    if not numbers:
        raise InputError(
            "train_blocks: expected a network with numbered blocks, got none; leave it out to train all parameters"
        )
    prefix = min(numbers, key=lambda prefix: (-len(numbers[prefix]), prefix.count(".")))
    return prefix, len(numbers[prefix])


def _is_in(name: str, prefix: str, first: int) -> bool:
    """True where a parameter belongs to block ``first`` or a later one."""
    match = _NUMBER.match(name, len(prefix)) if name.startswith(prefix) else None
    return match is not None and int(match.group()) >= first
