"""Segment sums and maxima over bags packed into one tensor.

Nothing is padded and no Python loop runs over bags. Long bags are summed in pieces, so that one long bag keeps all
cores busy as well as many short ones do; sums are accumulated and returned in at least fp32.

Axes: row (instance of the packed tensor), bag, piece, head (column of weights), value.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS_PER_PIECE = 64
FEW_BAGS = 32


class Segments(NamedTuple):
    """Bag index and position in the bag of each packed row.

    Each bag has at least one row.

    Args:
        bag: of each row, not decreasing.
        position: of each row in its bag.
        bags: number of bags.
        piece_bag: bag of each piece.
        piece_start: first row of each piece.
        longest: instances of the largest bag of the batch, all of its parts together.
    """

    bag: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    bags: int
    piece_bag: Int[Tensor, " piece"]
    piece_start: Int[Tensor, " piece"]
    longest: int

    @classmethod
    def of(cls, lengths: Int[np.ndarray, " bag"], position: Int[Tensor, " row"], longest: int) -> "Segments":
        """Segments of bags packed one after another.

        Args:
            lengths: rows of each bag, at least 1.
            position: of each row in its bag, increasing.
            longest: instances of the largest bag of the batch, all of its parts together.
        """
        start = lengths.cumsum() - lengths
        bag, _ = ragged(lengths)
        piece_bag, piece = ragged(-(-lengths // ROWS_PER_PIECE))
        return cls(
            torch.from_numpy(bag),
            position,
            len(lengths),
            torch.from_numpy(piece_bag),
            torch.from_numpy(start[piece_bag] + ROWS_PER_PIECE * piece),
            longest,
        )

    @classmethod
    def whole(cls, lengths: Sequence[int]) -> "Segments":
        """Segments of whole bags packed one after another."""
        count = np.asarray(lengths, dtype=np.int64)
        return cls.of(count, torch.from_numpy(ragged(count)[1]), int(count.max()))

    def each_row(self) -> "Segments":
        """The same rows, each as a bag of its own that keeps its position."""
        rows = torch.arange(len(self.bag), device=self.bag.device)
        return Segments(rows, self.position, len(rows), rows, rows, self.longest)

    def to(self, device: torch.device) -> "Segments":
        """The same segments on a device."""
        return Segments(
            self.bag.to(device),
            self.position.to(device),
            self.bags,
            self.piece_bag.to(device),
            self.piece_start.to(device),
            self.longest,
        )


def ragged(counts: Int[np.ndarray, " group"]) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Group index and position in the group of each row, from rows per group."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - (counts.cumsum() - counts)[group]


def segment_sum(values: Float[Tensor, "row value"], segments: Segments) -> Float[Tensor, "bag value"]:
    """Sum over the rows of each bag: ``s_b = sum_i v_i``."""
    total: Tensor = _Sum.apply(values, segments)  # type: ignore[no-untyped-call]
    return total


def weighted_segment_sum(
    weights: Float[Tensor, "row head"], values: Float[Tensor, "row value"], segments: Segments
) -> Float[Tensor, "bag head value"]:
    """Weighted sum over the rows of each bag, in the weights' precision.

    ``z_bk = sum over the rows i of bag b of w_ik v_i``
    """
    total: Tensor = _WeightedSum.apply(weights, values, segments)  # type: ignore[no-untyped-call]
    return total


def segment_max(values: Float[Tensor, "row value"], segments: Segments) -> Float[Tensor, "bag value"]:
    """Maximum of each column over the rows of each bag, without a gradient."""
    values = values.detach()
    lowest = values.new_full((segments.bags, values.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, segments.bag[:, None].expand_as(values), values, "amax")


def at_least_fp32(values: Tensor) -> Tensor:
    """Cast half precision to fp32; leave wider types as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, segments: Segments) -> Tensor:
        ctx.save_for_backward(segments.bag)
        ctx.dtype = values.dtype
        return _sum_pieces(at_least_fp32(_piece_sums(values, segments, None)), segments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (bag,) = ctx.saved_tensors
        return gradient.to(ctx.dtype).index_select(0, bag), None


class _WeightedSum(torch.autograd.Function):
    """Weighted segment sum with its gradient in closed form.

    ``dw_ik = <v_i, g_bk>`` and ``dv_i = sum_k w_ik g_bk`` with b the bag of row i.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, segments: Segments) -> Tensor:
        ctx.save_for_backward(weights, values, segments.bag)
        heads = [_piece_sums(values, segments, column) for column in weights.to(values.dtype).unbind(1)]
        return _sum_pieces(torch.stack(heads, dim=1).to(weights.dtype), segments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, values, bag = ctx.saved_tensors
        narrow, narrow_weights = gradient.to(values.dtype), weights.to(values.dtype)
        if len(narrow) <= FEW_BAGS:
            return _gradients_of_few_bags(weights, values, bag, narrow)
        of_rows = [narrow[:, head].index_select(0, bag) for head in range(weights.shape[1])]
        to_weights = torch.stack([(values * of_row).sum(dim=1, dtype=weights.dtype) for of_row in of_rows], dim=1)
        parts = (of_row.mul_(column[:, None]) for of_row, column in zip(of_rows, narrow_weights.unbind(1), strict=True))
        return to_weights, functools.reduce(torch.add, parts), None


def _gradients_of_few_bags(
    weights: Float[Tensor, "row head"], values: Tensor, bag: Tensor, gradient: Float[Tensor, "bag head value"]
) -> tuple[Float[Tensor, "row head"], Float[Tensor, "row value"], None]:
    """The same gradients as two dense products over all pairs of row and bag.

    Entries of a row with bags other than its own are zero; with few bags this is faster than gathering rows.
    """
    bags, heads, _ = gradient.shape
    own = bag[:, None, None].expand(-1, 1, heads)
    of_all = (values @ gradient.flatten(0, 1).t()).view(-1, bags, heads)
    placed = values.new_zeros(len(values), bags, heads).scatter_(1, own, weights.to(values.dtype)[:, None])
    return of_all.gather(1, own)[:, 0].to(weights.dtype), placed.flatten(1) @ gradient.flatten(0, 1), None


def _piece_sums(values: Tensor, segments: Segments, weights: Tensor | None) -> Float[Tensor, "piece value"]:
    # embedding_bag is torch's fastest ragged sum: one pass over the rows, pieces in parallel, accumulated in fp32
    rows = torch.arange(len(values), device=values.device)
    sums: Tensor = torch.nn.functional.embedding_bag(
        rows, values, segments.piece_start, mode="sum", per_sample_weights=weights
    )
    return sums


def _sum_pieces(pieces: Float[Tensor, "piece ..."], segments: Segments) -> Float[Tensor, "bag ..."]:
    return pieces.new_zeros(segments.bags, *pieces.shape[1:]).index_add_(0, segments.piece_bag, pieces)
