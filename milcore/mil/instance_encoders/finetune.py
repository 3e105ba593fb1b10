"""Networks with weights of their own, trained with the model: whole, or only their last blocks.

Batch statistics and dropout inside the network stay as in evaluation: a patch's embedding depends on no other patch, so
batches may be walked over in chunks and dealt to workers. What is below the trained blocks keeps no activations.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from milcore.config import TrainableEncoderName
from milcore.encoders.frozen import make, scale_of
from milcore.encoders.spec import parse_spec
from milcore.errors import InputError, StoreError
from milcore.mil.dropout import Mask, drop
from milcore.mil.instance_encoders.protocol import FeatureStatistics
from milcore.store.slide_group import SlideGroup

PATCHES_PER_CHUNK = 8
_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")


class PretrainedEncoder(nn.Module):
    """``h = ReLU(W f(x) + b)``, f being the network that a spec string names.

    Args:
        spec: the spec string.
        hidden: width of the embedding.
        train_blocks: last blocks of the network that learn; None for all of it.
    """

    def __init__(self, spec: str, hidden: int, train_blocks: int | None) -> None:
        super().__init__()
        made = make(parse_spec(spec), torch.device("cpu"))
        if not isinstance(made.network, nn.Module):
            raise InputError(
                f"encoder {spec!r}: an ONNX graph cannot be trained; allowed: the other kinds, or milcore encode"
            )
        self.network = made.network.eval()
        self.scale = made.transform
        learn_from(self.network, train_blocks)
        with torch.no_grad():
            edge = self.scale.input_px or 224
            width = self.network(torch.zeros(1, 3, edge, edge)).shape[1]
        self.project = nn.Linear(width, hidden)

    def pretrained(self) -> list[nn.Parameter]:
        """The parameters that begin as they are, not drawn."""
        return list(self.network.parameters())

    def prepare(self, statistics: FeatureStatistics) -> None:
        """Nothing to set up: pixels are scaled by the network's own constants."""
        del statistics

    def rows_per_chunk(self, instance: UInt8[Tensor, "instance height width 3"]) -> int:
        """Patches that are computed on at once."""
        del instance
        return PATCHES_PER_CHUNK

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
        parameters = self.project.weight.dtype

        def embed(patches: Tensor, mask: Mask | None) -> Tensor:
            pixels = self.scale(patches).to(parameters)
            with torch.autocast(patches.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                embeddings = torch.relu(self.project(self.network(pixels)))
            return embeddings if mask is None else drop(embeddings * scale, mask)

        return embed


def learn_from(network: nn.Module, train_blocks: int | None) -> None:
    """Let the last blocks learn, and what comes after them; nothing else.

    Blocks are the longest numbered list among the names of the network's parameters, which stand in its order.

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
            f"train_blocks {train_blocks}: the network has {count} blocks; allowed: 0 to {count}, or none for all"
        )
    first = next((k for k, (name, _) in enumerate(named) if _is_in(name, prefix, count - train_blocks)), None)
    if train_blocks == 0 or first is None:
        return
    for _, parameter in named[first:]:
        parameter.requires_grad_()


def check_patches(spec: str, slide: SlideGroup) -> None:
    """Refuse patches at another scale than a network with weights of its own is for; others take any.

    Raises:
        StoreError: how far they are off, or that the slide has none.
    """
    if spec in get_args(TrainableEncoderName):
        return
    if slide.patch_size is None:
        raise StoreError(f"slide {slide.slide_id!r} was imported without patches; train on its features")
    scale_of(parse_spec(spec)).check_scale(slide.slide_id, slide.patch_size, slide.attrs)


def _blocks(names: list[str]) -> tuple[str, int]:
    """The prefix of the longest list, and its length; of equally long ones the outermost."""
    places: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        for found in _NUMBER.finditer(name):
            places[name[: found.start()]].add(found.group())
    if not places:
        raise InputError(
            "train_blocks: the network's parameters are in no numbered blocks; leave it out to train all of them"
        )
    prefix = min(places, key=lambda place: (-len(places[place]), place.count(".")))
    return prefix, len(places[prefix])


def _is_in(name: str, prefix: str, first: int) -> bool:
    """Whether a parameter lies in block ``first`` of the list or a later one."""
    found = _NUMBER.match(name, len(prefix)) if name.startswith(prefix) else None
    return found is not None and int(found.group()) >= first
