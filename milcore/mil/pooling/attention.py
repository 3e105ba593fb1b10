"""Attention network that scores instances, with its gradient in closed form.

Axes: instance, key (embedding width), head (branch of attention: 1, or one per class), attention (hidden width).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from milcore.mil.bags.segments import at_least_fp32


class AttentionScore(nn.Module):
    """Attention scores of instances before the softmax, optionally gated.

    ``s = w^T tanh(V h)``, or gated ``s = w^T (tanh(V h) * sigmoid(U h))``; one w per head, V and U shared. The score
    has no bias: a constant cancels in the softmax, so its gradient would be rounding noise that an adaptive optimiser
    turns into steps.

    Source: Ilse et al. 2018, equations 8 and 9, with biases in V and U as in the authors' code.
    """

    def __init__(self, width: int, attention_width: int, heads: int, *, gated: bool) -> None:
        super().__init__()
        self.content = nn.Linear(width, attention_width)
        self.gate = nn.Linear(width, attention_width) if gated else None
        self.score = nn.Linear(attention_width, heads, bias=False)

    def scorer(self, dtype: torch.dtype) -> Callable[[Float[Tensor, "instance key"]], Float[Tensor, "instance head"]]:
        """Function from embeddings to scores in at least fp32.

        Products are taken in ``dtype``; V and U are stacked and cast now, once.
        """
        layers = [self.content] if self.gate is None else [self.content, self.gate]
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        cast = tuple(parameter.detach().to(dtype) for parameter in (weight, bias, self.score.weight))

        def score(keys: Tensor) -> Tensor:
            scores: Tensor = _Score.apply(keys, weight, bias, self.score.weight, cast)  # type: ignore[no-untyped-call]
            return scores

        return score


class _Score(torch.autograd.Function):
    """Attention scores with their gradient in closed form.

    The hidden layer is transposed, (attention, instance), so that content and gate are contiguous halves of one
    product. With c = tanh(V h + b), g = sigmoid(U h + d) and e = w ds: d(V h) = e (g - (c g) c) and d(U h) = e (c g -
    (c g) g); ungated, d(V h) = e (1 - c c).
    """

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - every parameter is an input, so that its gradient can be returned
        ctx: Any, keys: Tensor, weight: Tensor, bias: Tensor, score: Tensor, cast: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        del bias
        narrow_weight, narrow_bias, narrow_score = cast
        hidden = torch.addmm(narrow_bias[:, None], narrow_weight, keys.t())
        width = score.shape[1]
        content, gate = hidden[:width].tanh_(), hidden[width:].sigmoid_()
        product = content * gate if len(gate) else content
        ctx.save_for_backward(keys, hidden, narrow_weight, narrow_score)
        ctx.dtype = weight.dtype
        return at_least_fp32(narrow_score @ product).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        keys, hidden, weight, score = ctx.saved_tensors
        width = score.shape[1]
        content, gate = hidden[:width], hidden[width:]
        product = content * gate if len(gate) else content
        to_scores = gradient.to(keys.dtype).t()
        to_product = score.t() @ to_scores
        if len(gate):
            to_hidden = torch.empty_like(hidden)
            torch.addcmul(gate, product, content, value=-1, out=to_hidden[:width]).mul_(to_product)
            torch.addcmul(product, product, gate, value=-1, out=to_hidden[width:]).mul_(to_product)
        else:
            to_hidden = torch.ops.aten.tanh_backward(to_product, content)
        return (
            to_hidden.t() @ weight,
            (to_hidden @ keys).to(ctx.dtype),
            to_hidden.sum(dim=1).to(ctx.dtype),
            (to_scores @ product.t()).to(ctx.dtype),
            None,
        )
