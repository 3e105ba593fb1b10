"""Batches of an epoch, dealt to ranks, and the weights of bag losses.

Global batches and weights follow from config, labels and epoch alone; they are dealt to ranks so that any number of
ranks learns the same: a bag of one rank counts world_size-fold, a bag split over all ranks once on each of them
(docs/pooling.md derives it).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from milcore.config import TrainConfig
from milcore.mil.bags.bags import Bags
from milcore.mil.bags.dealing import deal, global_batches, micro_batches
from milcore.mil.target import JointLoss
from milcore.mil.targets import MODEL_TARGETS
from milcore.training.class_balance import balanced_sample, class_weights
from milcore.training.context import TrainContext


class Group(NamedTuple):
    """Bags that one rank computes on at once.

    Args:
        bags: their indices.
        weights: of the loss of each bag.
        split_over_ranks: True for a single bag of which every rank computes a part.
    """

    bags: list[int]
    weights: list[float]
    split_over_ranks: bool


class RankBatch(NamedTuple):
    """The part of a global batch that one rank computes.

    Args:
        groups: computed one after another.
        batch_weight: sum of the weights of all bags of the global batch.
    """

    groups: list[Group]
    batch_weight: float


def rank_batches(config: TrainConfig, bags: Bags, budget: int, epoch: int, ctx: TrainContext) -> list[RankBatch]:
    """The batches of an epoch that one rank computes.

    Args:
        config: batch size, class balance, instances per bag and seed.
        bags: those of split ``train`` are taken.
        budget: instances that one rank computes on at once.
        epoch: from 0.
        ctx: of this rank.
    """
    limit = instances_per_bag(config, bags)
    lengths = [min(length, limit) for length in bags.lengths]
    of_rank = functools.partial(rank_batch, lengths=lengths, budget=budget, rank=ctx.rank, world_size=ctx.world_size)
    batches = epoch_batches(config, bags, epoch)
    loss = MODEL_TARGETS[config.target].loss
    if isinstance(loss, JointLoss):
        equal = [1.0] * len(lengths)
        return [_joint_batch(of_rank(batch, weights=equal), batch, _weight(loss, batch, bags)) for batch in batches]
    weights = bag_weights(config, bags)
    return [of_rank(batch, weights=weights) for batch in batches]


def _joint_batch(part: RankBatch, batch: Sequence[int], batch_weight: float) -> RankBatch:
    """A part of a batch with a joint loss.

    Its groups have the factors of the derivatives of their bags: those of the loss itself, not of a mean over bags.
    """
    groups = [group._replace(weights=[weight * len(batch) for weight in group.weights]) for group in part.groups]
    return RankBatch(groups, batch_weight)


def _weight(loss: JointLoss, batch: Sequence[int], bags: Bags) -> float:
    return loss.weight([bags.entries[index] for index in batch])


def epoch_batches(config: TrainConfig, bags: Bags, epoch: int) -> list[list[int]]:
    """Global batches of an epoch: every training bag once, or every class equally often.

    One of Cox's survival without an event has no loss and is left out.
    """
    indices = bags.split("train")
    if config.class_balance == "sampled":
        labels = [bags.entries[index].label for index in indices]
        indices = balanced_sample(indices, labels, config.seed, epoch)
    batches = global_batches(indices, bags_per_step(config, len(indices)), config.seed, epoch)
    loss = MODEL_TARGETS[config.target].loss
    return [batch for batch in batches if _weight(loss, batch, bags)] if isinstance(loss, JointLoss) else batches


def bags_per_step(config: TrainConfig, count: int) -> int:
    """Bags in one optimizer step, of so many in an epoch."""
    return count if config.batch_size == "all" else config.batch_size


def bag_weights(config: TrainConfig, bags: Bags) -> list[float]:
    """Weight of each bag's loss: 1, or that of its class."""
    labels = [entry.label for entry in bags.entries]
    if config.class_balance != "weighted":
        return [1.0] * len(labels)
    of_class = class_weights(np.array([labels[index] for index in bags.split("train")]), bags.classes)
    return [float(of_class[label]) for label in labels]


def instances_per_bag(config: TrainConfig, bags: Bags) -> int:
    """Largest number of instances that an epoch takes of a bag."""
    return config.instances_per_bag or max(bags.lengths)


def rank_batch(  # noqa: PLR0913 - plain numbers, so that it is tested without bags
    batch: Sequence[int],
    *,
    lengths: Sequence[int],
    weights: Sequence[float],
    budget: int,
    rank: int,
    world_size: int,
) -> RankBatch:
    """The groups of one rank.

    A bag within the budget is computed by one rank; a larger one by all ranks, a part each. Those come first, so that
    the ranks meet in one order.

    Args:
        batch: indices of the global batch's bags; one may occur twice.
        lengths: instances of every bag, by index.
        weights: of the loss of every bag, by index.
        budget: instances that one rank computes on at once.
        rank: of the groups.
        world_size: number of ranks.
    """
    total = sum(weights[index] for index in batch)
    large = [index for index in batch if world_size > 1 and lengths[index] > max(budget, world_size)]
    rest = [index for index in batch if index not in large]
    groups = [Group([index], [weights[index] / total], split_over_ranks=True) for index in large]
    groups += [
        Group(indices, [world_size * weights[index] / total for index in indices], split_over_ranks=False)
        for indices in micro_batches(deal(rest, lengths, world_size)[rank], lengths, budget)
    ]
    # a rank without any bag joins the all-reduce with a bag of another and a zero loss
    return RankBatch(groups or [Group(list(batch[:1]), [0.0], split_over_ranks=False)], total)
