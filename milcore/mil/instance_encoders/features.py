"""Trainable layers over frozen features, with their gradient in closed form.

Axes: instance, feature, hidden (embedding width).
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from milcore.config import FeatureForm
from milcore.mil.dropout import Mask
from milcore.mil.instance_encoders.protocol import FeatureStatistics

INSTANCES_PER_CHUNK = 4096
ROWS_PER_CAST = 512


class FeatureEncoder(nn.Module):
    """Linear layers with ReLU over standardised features.

    ``h = ReLU(W z + b)`` with ``z = (x - mean) / sd``; further layers take h. mean and sd are those of the training
    bags. Standardisation is folded into the first layer and the scale of dropout into the last, once per step: ReLU
    commutes with a positive scale.

    Args:
        width: of the features.
        widths: of the layers' outputs; the last is the width of the embedding.
        form: z, its signed square root, or both.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, width: int, widths: Sequence[int], form: FeatureForm) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("sd", torch.ones(width))
        self.form = form
        self.project = nn.Linear(2 * width if form == "both" else width, widths[0])
        self.further = nn.Sequential(*(nn.Linear(*pair) for pair in itertools.pairwise(widths)))

    def rows_per_chunk(self, instance: Float[Tensor, "instance feature"]) -> int:
        """Instances per chunk."""
        del instance
        return INSTANCES_PER_CHUNK

    def embedder(
        self, dtype: torch.dtype, stored: torch.dtype, scale: float
    ) -> Callable[[Float[Tensor, "instance feature"], Mask | None], Float[Tensor, "instance hidden"]]:
        """Function from stored features to embeddings, by weights folded and cast now.

        Args:
            dtype: of the products.
            stored: of the features. Before they are cast to half precision they are centred: far from zero it would
                leave little of their spread.
            scale: of the embeddings, for those that the function's second argument, the mask, drops; 1 without.
        """
        scales = [1.0] * len(self.further) + [scale]
        prepare, first = self._first(dtype, stored, scales[0])
        further = [
            _Layer.of(layer.weight * scale, layer.bias * scale, dtype)
            for layer, scale in zip(self.further.children(), scales[1:], strict=True)
            if isinstance(layer, nn.Linear)
        ]
        *inner, last = first, *further

        def embed(features: Tensor, mask: Mask | None) -> Tensor:
            values = prepare(features)
            for layer in inner:
                values = layer(values, None)
            return last(values, mask)

        return embed

    def _first(self, dtype: torch.dtype, stored: torch.dtype, scale: float) -> "tuple[_Prepare, _Layer]":
        """Function that prepares stored features, and the first layer."""
        bias = self.project.bias * scale
        if self.form != "standardised":
            prepare = functools.partial(_roots, mean=self.mean, sd=self.sd, form=self.form, dtype=dtype)
            return prepare, _Layer.of(self.project.weight * scale, bias, dtype)
        weight = self.project.weight * (scale / self.sd)
        if stored != dtype and dtype == torch.bfloat16:
            return functools.partial(_centre, mean=self.mean, dtype=dtype), _Layer.of(weight, bias, dtype)
        return functools.partial(_cast, dtype=dtype), _Layer.of(weight, bias - weight @ self.mean, dtype)

    def pretrained(self) -> list[nn.Parameter]:
        """None: every layer begins with random weights."""
        return []

    def prepare(self, statistics: FeatureStatistics) -> None:
        """Standardise by the statistics of the training bags."""
        self.standardise(*statistics())

    def standardise(self, mean: Float[Tensor, " feature"], sd: Float[Tensor, " feature"]) -> None:
        """Set mean and standard deviation of the features; a constant feature is not scaled."""
        self.mean.copy_(mean)
        self.sd.copy_(torch.where(sd > 0, sd, torch.ones_like(sd)))


def linear(width: int, hidden: int, form: FeatureForm) -> FeatureEncoder:
    """Encoder of one layer.

    Args:
        width: of the features.
        hidden: of the embedding.
        form: of the features.
    """
    return FeatureEncoder(width, (hidden,), form)


def mlp(width: int, hidden: int, form: FeatureForm) -> FeatureEncoder:
    """Encoder of three layers of 256, 128 and ``hidden`` units.

    The source has hidden = 64 for the classic MIL data sets.

    Args:
        width: of the features.
        hidden: of the embedding.
        form: of the features.

    Source: Ilse et al. 2018, appendix table of the architecture for the MIL data sets.
    """
    return FeatureEncoder(width, (256, 128, hidden), form)


def _cast(features: Float[Tensor, "instance feature"], dtype: torch.dtype) -> Float[Tensor, "instance feature"]:
    return features.to(dtype)


def _roots(
    features: Float[Tensor, "instance feature"],
    mean: Float[Tensor, " feature"],
    sd: Float[Tensor, " feature"],
    form: FeatureForm,
    dtype: torch.dtype,
) -> Float[Tensor, "instance form"]:
    """Signed square root ``sign(z) sqrt(|z|)``, for form ``both`` appended to z."""
    standardised = (features.to(mean.dtype) - mean) / sd
    root = standardised.abs().sqrt_().copysign_(standardised)
    return (torch.cat([standardised, root], dim=1) if form == "both" else root).to(dtype)


def _centre(
    features: Float[Tensor, "instance feature"], mean: Float[Tensor, " feature"], dtype: torch.dtype
) -> Float[Tensor, "instance feature"]:
    """``x - mean`` in the mean's precision, then cast.

    In blocks that stay in the processor's cache between the two.
    """
    centred = features.new_empty(features.shape, dtype=dtype)
    for start in range(0, len(features), ROWS_PER_CAST):
        rows = slice(start, start + ROWS_PER_CAST)
        centred[rows] = features[rows].to(mean.dtype, copy=True).sub_(mean)
    return centred


_Prepare = Callable[[Tensor], Tensor]


class _Layer(NamedTuple):
    """Parameters of a layer, and their copies cast for the product.

    The gradient goes to the parameters.
    """

    weight: Tensor
    bias: Tensor
    cast_weight: Tensor
    cast_bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> "_Layer":
        """Layer with its weights cast once, for all chunks."""
        return cls(weight, bias, weight.detach().to(dtype), bias.detach().to(dtype))

    def __call__(self, values: Tensor, mask: Mask | None) -> Tensor:
        operands = _Operands(self.cast_weight, self.cast_bias, mask)
        embeddings: Tensor = _Embed.apply(values, self.weight, self.bias, operands)  # type: ignore[no-untyped-call]
        return embeddings


class _Operands(NamedTuple):
    """Cast weights of a product, and the dropout mask of its result."""

    weight: Tensor
    bias: Tensor
    mask: Mask | None


class _Embed(torch.autograd.Function):
    """``h = drop(ReLU(W x + b))`` with its gradient in closed form.

    The gradient passes where h is positive, so h alone is saved.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, operands: _Operands) -> Tensor:
        del bias
        hidden = functional.linear(features, operands.weight, operands.bias).relu_()
        if operands.mask is not None:
            operands.mask.apply_(hidden)
        ctx.save_for_backward(features, hidden, operands.weight)
        ctx.dtype = weight.dtype
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        features, hidden, weight = ctx.saved_tensors
        to_product = torch.ops.aten.threshold_backward(gradient, hidden, 0)
        to_weight = (to_product.t() @ features).to(ctx.dtype)
        to_features = to_product @ weight if ctx.needs_input_grad[0] else None
        return to_features, to_weight, to_product.sum(dim=0).to(ctx.dtype), None
