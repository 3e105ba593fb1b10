"""Additive pooling: the bag's logit is a sum of contributions of instances.

Axes: instance, bag, head (column of attention: 1, or one per class), key (embedding width).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from milcore.mil.bags.segments import Segments, at_least_fp32, segment_sum
from milcore.mil.pooling.attention import AttentionScore
from milcore.mil.pooling.protocol import PoolingShape, Scorer, Summary
from milcore.mil.pooling.softmax import softmax_weights
from milcore.mil.pooling.sums import merge_relative_sums, relative_exponentials


class SoftmaxNormaliser:
    """First pass: the normaliser of a softmax of scores over the bag.

    The summary is (m = max s, sum exp(s - m)). The second pass takes the weights ``exp(s - m) / sum`` in place of the
    scores, and the columns after the scores as values.

    Args:
        heads: columns that are scores.
    """

    def __init__(self, heads: int) -> None:
        self.heads = heads

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        del values
        largest, exponential = relative_exponentials(scores[:, : self.heads], segments)
        return largest, segment_sum(exponential, segments)

    def merge(self, a: Summary, b: Summary) -> Summary:
        return merge_relative_sums(a, b)

    def condition(
        self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments
    ) -> tuple[Float[Tensor, "instance head"], Float[Tensor, "instance key"]]:
        del values
        return softmax_weights(scores[:, : self.heads], summary, segments), scores[:, self.heads :]


class AdditivePooling(nn.Module):
    """Sum over instances: ``z = sum_i relu(W a_i h_i + b)``, ``a = softmax(s)``.

    At embedding level only. The classifier reads z, so that the bag's logit is the sum of one contribution ``psi(a_i
    h_i)`` per instance, ``psi(x) = c^T relu(W x + b)``, and the classifier's own bias: a patch counts for a class or
    against it. Two passes: the softmax's normaliser first. With a head per class, head c weighs for class c. As scores
    the first pass takes s and the products W h, so that the second only scales them.

    Source: Javed et al. 2022, arXiv 2206.01794, with ReLU in psi and ungated attention; the last
    bias is added once a bag, not once an instance.
    """

    def __init__(self, shape: PoolingShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention = AttentionScore(shape.width, shape.attention_width, shape.heads, gated=False)
        self.content = nn.Linear(shape.width, shape.width)
        self.first = SoftmaxNormaliser(shape.heads)

    def scorer(self, dtype: torch.dtype) -> Scorer:
        score, weight = self.attention.scorer(dtype), self.content.weight.to(dtype)

        def columns(keys: Tensor) -> Tensor:
            return torch.cat([score(keys), at_least_fp32(functional.linear(keys, weight))], dim=1)

        return columns

    def terms(
        self, scores: Float[Tensor, "instance head"], values: Float[Tensor, "instance key"]
    ) -> Float[Tensor, "instance pooled"]:
        """Terms of the sum z, one per instance; heads are concatenated."""
        return torch.relu(scores[:, :, None] * values[:, None] + self.content.bias).flatten(1)

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        return (segment_sum(self.terms(scores, values), segments),)

    def merge(self, a: Summary, b: Summary) -> Summary:
        return (a[0] + b[0],)

    def finish(self, summary: Summary) -> Tensor:
        return summary[0]

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del values, summary, segments
        return scores
