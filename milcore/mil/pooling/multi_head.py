"""Multi-head attention pooling: learnt queries attend to the instances of a bag.

Axes: instance, bag, head (heads of all queries, one after another), key (embedding width), part (width of a head).
"""

import math

import torch
from torch import Tensor, nn

from milcore.mil.bags.segments import Segments, at_least_fp32
from milcore.mil.pooling.protocol import PoolingShape, Scorer, Summary
from milcore.mil.pooling.softmax import lift_softmax, merge_softmax, softmax_weights


class MultiHeadAttentionPooling(nn.Module):
    """Attention of Q learnt queries with H heads each, joined to one embedding.

    ``z = O [z_11; ...; z_QH]``, ``z_qh = V_h sum_i a_iqh h_i``, ``a_qh = softmax(q_qh^T K_h h / sqrt(d))``. At
    embedding level only: one layer of cross-attention from Q learnt queries, H heads of width d, is one pass. V and O
    are linear and weights sum to 1, so that both are taken after the sum over instances: the summary is that of
    attention pooling with Q H heads. A score is one product with ``K_h^T q_qh``. Keys have no bias, which cancels in
    the softmax; that of the values is O's. The weight of an instance is its mean over heads and queries.

    Source: Lee et al. 2019, arXiv 1810.00825, pooling by multihead attention (section 3.2), without the residual,
    feed-forward and normalisation of its block; O joins the queries to one embedding.
    """

    heads = 0

    def __init__(self, shape: PoolingShape) -> None:
        super().__init__()
        self.parts = shape.pooling_heads
        self.query = nn.Parameter(torch.randn(shape.pooling_queries, shape.width))
        self.key = nn.Linear(shape.width, shape.width, bias=False)
        self.value = nn.Linear(shape.width, shape.width, bias=False)
        self.join = nn.Linear(shape.pooling_queries * shape.width, shape.width)

    def scorer(self, dtype: torch.dtype) -> Scorer:
        query = self.query.reshape(len(self.query), self.parts, -1)
        key = self.key.weight.reshape(self.parts, -1, self.key.in_features)
        columns = torch.einsum("qhp,hpk->qhk", query, key).flatten(0, 1) / math.sqrt(query.shape[2])
        narrow = columns.to(dtype)

        def score(keys: Tensor) -> Tensor:
            return at_least_fp32(keys @ narrow.t())

        return score

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        return lift_softmax(scores, values, segments)

    def merge(self, a: Summary, b: Summary) -> Summary:
        return merge_softmax(a, b)

    def finish(self, summary: Summary) -> Tensor:
        mean = summary[2] / summary[1][..., None]
        pooled = mean.reshape(len(mean), len(self.query), self.parts, -1)
        value = self.value.weight.reshape(self.parts, -1, self.value.in_features)
        of_heads = torch.einsum("bqhk,hpk->bqhp", pooled, value)
        joined: Tensor = self.join(of_heads.flatten(1))
        return joined

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del values
        return softmax_weights(scores, summary, segments).mean(dim=1, keepdim=True)
