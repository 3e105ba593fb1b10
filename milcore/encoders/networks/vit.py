"""Vision transformer with timm's parameter names, the network of most pathology encoders.

Its sizes are read from the weights (depth, widths, patch edge, register tokens, gated MLP, scaled branches); only the
number of heads is not in them. These encoders need torch alone. Axes: patch, token, feature.

Sources: Dosovitskiy et al. 2021, arXiv 2010.11929; branches scaled: Touvron et al. 2021, arXiv 2103.17239; gated MLP:
Shazeer 2020, arXiv 2002.05202; registers: Darcet et al. 2024, arXiv 2309.16588.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from milcore.errors import InputError

NORM_EPS = 1e-6
NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "blocks.0.mlp.fc1.weight")


class VitShape(NamedTuple):
    """Sizes of a vision transformer.

    Args:
        width: of a token.
        depth: blocks.
        heads: of attention.
        patch_px: edge of the image patch of a token.
        positions: learnt position embeddings, with or without those of the prefix tokens.
        patches: patch tokens of the image.
        registers: tokens between the class token and the patch tokens.
        inner: width inside the MLP, before its gate.
        gated: True for an MLP of SiLU(a) * b (SwiGLU), else GELU.
        scaled: True where each branch is scaled by learnt factors (LayerScale).
    """

    width: int
    depth: int
    heads: int
    patch_px: int
    positions: int
    patches: int
    registers: int
    inner: int
    gated: bool
    scaled: bool

    @classmethod
    def of(cls, state: Mapping[str, Tensor], heads: int, input_px: int) -> "VitShape":
        """Sizes from the shapes of the weights.

        Raises:
            InputError: the weights are not those of a vision transformer, or of another input size.
        """
        missing = [name for name in NEEDED if name not in state]
        if missing:
            raise InputError(
                f"encoder: expected a vision transformer with timm's names, got weights without {', '.join(missing)}; "
                f"allowed: weights with {', '.join(NEEDED)}"
            )
        width, _, patch_px, _ = state["patch_embed.proj.weight"].shape
        inner, after_gate = state["blocks.0.mlp.fc1.weight"].shape[0], state["blocks.0.mlp.fc2.weight"].shape[1]
        registers = state["reg_token"].shape[1] if "reg_token" in state else 0
        patches, positions = (input_px // patch_px) ** 2, state["pos_embed"].shape[1]
        if positions not in (patches, patches + 1 + registers):
            raise InputError(
                f"encoder: input_px: expected an input of {positions} positions, as in the weights, got {patches} "
                f"patches of {patch_px} px in {input_px} px; give the input_px that the weights were trained with"
            )
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        scaled = "blocks.0.ls1.gamma" in state
        return cls(width, depth, heads, patch_px, positions, patches, registers, inner, inner == 2 * after_gate, scaled)


class VisionTransformer(nn.Module):
    """Images to normalised tokens: class token, registers, patch tokens."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.prefix = 1 + shape.registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        if shape.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, shape.registers, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.positions, shape.width))
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, shape.width, kernel_size=shape.patch_px, stride=shape.patch_px)}
        )
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self._prefix_has_positions = shape.positions > shape.patches

    def forward(self, pixels: Float[Tensor, "patch 3 height width"]) -> Float[Tensor, "patch token feature"]:
        """Normalised tokens of the last block."""
        patches = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        prefix = self.cls_token if self.prefix == 1 else torch.cat([self.cls_token, self.reg_token], dim=1)
        if not self._prefix_has_positions:
            patches = patches + self.pos_embed
        tokens = torch.cat([prefix.expand(len(patches), -1, -1), patches], dim=1)
        if self._prefix_has_positions:
            tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        normalised: Tensor = self.norm(tokens)
        return normalised


class _Block(nn.Module):
    """``x + ls1 * attention(norm1(x))``, then ``x + ls2 * mlp(norm2(x))``."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.attn = _Attention(shape.width, shape.heads)
        self.norm2 = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.mlp = _Mlp(shape.width, shape.inner, gated=shape.gated)
        self.ls1, self.ls2 = (_Scale(shape.width) if shape.scaled else nn.Identity() for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        summed: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return summed


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        by_head = self.qkv(tokens).unflatten(2, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*by_head.unbind(0))
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int, *, gated: bool) -> None:
        super().__init__()
        self._gated = gated
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner // 2 if gated else inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)
        if self._gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = functional.silu(gate) * value
        else:
            hidden = functional.gelu(hidden)
        narrowed: Tensor = self.fc2(hidden)
        return narrowed


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.gamma
