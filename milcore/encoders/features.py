"""The trainable first layer over frozen features, with its gradient in closed form.

Axes: instance, feature, hidden (embedding width).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from milcore.dropout import Mask

INSTANCES_PER_CHUNK = 4096
ROWS_PER_CAST = 512


class FeatureEncoder(nn.Module):
    """``h = ReLU(W (x - mean) / sd + b)`` over frozen features; mean and sd are those of the training bags.

    Standardisation and the scale of dropout are folded into W and b once per step: ReLU commutes with a positive scale.
    """

    mean: Tensor
    sd: Tensor
    chunk_rows = INSTANCES_PER_CHUNK

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("sd", torch.ones(width))
        self.project = nn.Linear(width, hidden)

    def embedder(
        self, dtype: torch.dtype, stored: torch.dtype, scale: float
    ) -> Callable[[Float[Tensor, "instance feature"], Mask | None], Float[Tensor, "instance hidden"]]:
        """Embeddings of features as stored, by weights that are taken over, folded and cast now.

        Args:
            dtype: of the products.
            stored: of the features. Before they are cast to half precision they are centred: far from zero it would
                leave little of their spread.
            scale: of the embeddings, for those that the function's second argument, the mask, drops; 1 without.
        """
        centred = stored != dtype and dtype == torch.bfloat16
        weight = self.project.weight * (scale / self.sd)
        bias = self.project.bias * scale if centred else self.project.bias * scale - weight @ self.mean
        cast = (weight.detach().to(dtype), bias.detach().to(dtype))

        def embed(features: Tensor, mask: Mask | None) -> Tensor:
            taken = _centre(features, self.mean, dtype) if centred else features.to(dtype)
            embeddings: Tensor = _Embed.apply(taken, weight, bias, _Given(*cast, mask))  # type: ignore[no-untyped-call]
            return embeddings

        return embed

    def standardise(self, mean: Float[Tensor, " feature"], sd: Float[Tensor, " feature"]) -> None:
        """Take over the statistics of the training bags; a constant feature is left as it is."""
        self.mean.copy_(mean)
        self.sd.copy_(torch.where(sd > 0, sd, torch.ones_like(sd)))


def _centre(
    features: Float[Tensor, "instance feature"], mean: Float[Tensor, " feature"], dtype: torch.dtype
) -> Float[Tensor, "instance feature"]:
    """``x - mean`` in the mean's precision, then cast; by blocks that stay in the processor's cache between the two."""
    centred = features.new_empty(features.shape, dtype=dtype)
    for start in range(0, len(features), ROWS_PER_CAST):
        rows = slice(start, start + ROWS_PER_CAST)
        centred[rows] = features[rows].to(mean.dtype, copy=True).sub_(mean)
    return centred


class _Given(NamedTuple):
    """What the product is taken with, beside the parameters that its gradient is for."""

    weight: Tensor
    bias: Tensor
    mask: Mask | None


class _Embed(torch.autograd.Function):
    """``h = drop(ReLU(W x + b))``: where h is positive the gradient passes, else not, so h is all that is kept."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, given: _Given) -> Tensor:
        del bias
        hidden = functional.linear(features, given.weight, given.bias).relu_()
        if given.mask is not None:
            given.mask.apply_(hidden)
        ctx.save_for_backward(features, hidden)
        ctx.dtype = weight.dtype
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
        features, hidden = ctx.saved_tensors
        to_product = torch.ops.aten.threshold_backward(gradient, hidden, 0)
        to_weight = (to_product.t() @ features).to(ctx.dtype)
        return None, to_weight, to_product.sum(dim=0).to(ctx.dtype), None
