"""Dual-stream pooling: attention to the critical instance, and its own logit.

Axes: instance, bag, class (logits: one where there are two classes), key (embedding width), query (width of a query),
column (logit of each class and, in the first pass, the query, in the second the attention score of each class).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from milcore.mil.bags.segments import Segments, at_least_fp32
from milcore.mil.pooling.maxima import is_first_winner, winner_rows
from milcore.mil.pooling.protocol import PoolingShape, Scorer, Summary
from milcore.mil.pooling.softmax import lift_softmax, merge_softmax, softmax_weights


class CriticalInstance:
    """First pass: the query of each class's critical instance, that of the largest logit.

    The summary is (the largest logits, their positions, the queries of these instances). The second pass takes the
    scores of the instances by these queries. Only critical instances have a gradient.

    Args:
        classes: columns that are logits; the query follows.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        del values
        logit, query = scores[:, : self.classes], scores[:, self.classes :]
        rows = winner_rows(logit, segments)
        return logit.gather(0, rows), segments.position[rows], query[rows]

    def merge(self, a: Summary, b: Summary) -> Summary:
        take_a = is_first_winner(a, b)
        logit, position = (torch.where(take_a, *pair) for pair in zip(a[:2], b[:2], strict=True))
        return logit, position, torch.where(take_a[..., None], a[2], b[2])

    def winners(self, summary: Summary) -> Int[Tensor, "bag class"]:
        """Positions in their bags of the critical instances."""
        return summary[1]

    def of_winners(self, winners: Summary, whole: Summary) -> Summary:
        """Summary of the critical instances, which is that of the bag."""
        del whole
        return winners

    def condition(
        self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments
    ) -> tuple[Float[Tensor, "instance column"], Float[Tensor, "instance key"]]:
        logit, query = scores[:, : self.classes], scores[:, self.classes :]
        critical = summary[2] / math.sqrt(query.shape[1])
        if segments.bags == 1:
            score = query @ critical[0].t()
        else:
            score = torch.einsum("iq,icq->ic", query, critical.index_select(0, segments.bag))
        return torch.cat([logit, score], dim=1), values


class DualStreamPooling(nn.Module):
    """Attention by likeness to the critical instance, whose logit is a second stream.

    ``z_c = sum_i a_ic h_i``, ``a_c = softmax(q_i^T q_m / sqrt(d))``. At embedding level only. A linear classifier of
    instances, ``v_i = w_c^T h_i + b_c``, finds the critical instance m of class c, that of the largest logit v; queries
    are ``q_i = W h_i + b``, d their width. Two streams: the largest logit of instances, and the classifier's of
    ``z_c``. The bag's logit is their mean, and both are trained: the loss is the mean of those of the two. The gradient
    goes through the query of the critical instance, not through its choice. Two passes: the critical instances first.

    Source: Li, Li, Eliceiri 2021, arXiv 2011.08939, section 3.2, and the authors' code for ``1 / sqrt(d)`` and the two
    losses. The values are the embeddings: a linear map of them before the linear classifier would be one linear map.
    Class c is read from ``z_c`` alone, where the authors' code reads it from those of all classes.
    """

    heads = 0

    def __init__(self, shape: PoolingShape) -> None:
        super().__init__()
        self.instance_classifier = nn.Linear(shape.width, shape.classes)
        self.query = nn.Linear(shape.width, shape.attention_width)
        self.first = CriticalInstance(shape.classes)

    def scorer(self, dtype: torch.dtype) -> Scorer:
        layers = self.instance_classifier, self.query
        weight = torch.cat([layer.weight for layer in layers]).to(dtype)
        bias = torch.cat([layer.bias for layer in layers]).to(dtype)

        def columns(keys: Tensor) -> Tensor:
            return at_least_fp32(functional.linear(keys, weight, bias))

        return columns

    def lift(self, scores: Tensor, values: Tensor, segments: Segments) -> Summary:
        logit, score = scores.chunk(2, dim=1)
        rows = winner_rows(logit, segments)
        return *lift_softmax(score, values, segments), logit.gather(0, rows), segments.position[rows]

    def merge(self, a: Summary, b: Summary) -> Summary:
        take_a = is_first_winner(a[3:], b[3:])
        largest = (torch.where(take_a, *pair) for pair in zip(a[3:], b[3:], strict=True))
        return *merge_softmax(a[:3], b[:3]), *largest

    def finish(self, summary: Summary) -> Tensor:
        return (summary[2] / summary[1][..., None]).flatten(1)

    def stream_logit(self, summary: Summary) -> Float[Tensor, "bag class"]:
        """Logits of the critical instances."""
        return summary[3]

    def weights(self, scores: Tensor, values: Tensor, summary: Summary, segments: Segments) -> Tensor | None:
        del values
        return softmax_weights(scores.chunk(2, dim=1)[1], summary, segments)
