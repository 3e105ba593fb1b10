"""What one rank computes of a global batch, and what its losses count, so that any number of ranks learn the same.

DDP takes the mean over ranks of their gradients. It is that of ``sum(w l) / sum(w)`` over the global batch if a bag
that one rank holds counts world_size-fold, and one that all ranks hold a part of counts once on each of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from milcore.mil.bags.dealing import deal, micro_batches


class Group(NamedTuple):
    """Bags that one rank computes on at once, what the loss of each counts, and whether all ranks hold a part of it."""

    bags: list[int]
    weights: list[float]
    split_over_ranks: bool


class RankBatch(NamedTuple):
    """A rank's groups of a global batch, and the sum of the batch's class weights."""

    groups: list[Group]
    batch_weight: float


def rank_batch(  # noqa: PLR0913 - plain numbers, so that it can be told from them alone
    batch: Sequence[int],
    *,
    lengths: Sequence[int],
    weights: Sequence[float],
    budget: int,
    rank: int,
    world_size: int,
) -> RankBatch:
    """The groups of a rank.

    A bag within the budget is one rank's; a larger one is computed on by all ranks, each holding a part. Those come
    first, so that the ranks meet in one order.

    Args:
        batch: indices of the global batch's bags; one may occur twice.
        lengths: instances of every bag there is.
        weights: of the loss of every bag there is.
        budget: instances that one rank computes on at once.
        rank: whose share.
        world_size: ranks in all.
    """
    total = sum(weights[index] for index in batch)
    split_over_ranks = [index for index in batch if world_size > 1 and lengths[index] > max(budget, world_size)]
    rest = [index for index in batch if index not in split_over_ranks]
    groups = [Group([index], [weights[index] / total], split_over_ranks=True) for index in split_over_ranks]
    groups += [
        Group(hand, [world_size * weights[index] / total for index in hand], split_over_ranks=False)
        for hand in micro_batches(deal(rest, lengths, world_size)[rank], lengths, budget)
    ]
    # a rank left without any joins the all-reduce with somebody's bag and a zero loss
    return RankBatch(groups or [Group(list(batch[:1]), [0.0], split_over_ranks=False)], total)
