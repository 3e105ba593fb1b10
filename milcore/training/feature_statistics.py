"""Mean and standard deviation of each feature over the training bags, for standardisation."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from milcore.mil.bags.bags import Bags
from milcore.mil.bags.dealing import deal, micro_batches
from milcore.training.context import TrainContext, sum_over_ranks

ROWS_PER_SUM = 4096
# the error of a mean over so many bags is 2 % of the spread between bags
MOST_BAGS = 2048


def feature_statistics(
    bags: Bags, ctx: TrainContext, seed: int
) -> tuple[Float[Tensor, " feature"], Float[Tensor, " feature"]]:
    """Mean and standard deviation over the instances of the training bags.

    ``std = sqrt(mean(x^2) - mean(x)^2)``, in float64; each rank reads its part of the bags. Of more than 2,048 training
    bags, a sample of 2,048 is read, so that the first step does not wait for the whole cohort; it depends on the seed
    alone.

    Args:
        bags: those of split ``train`` are taken.
        ctx: of this rank.
        seed: of the sample.
    """
    width = bags.instance().shape[-1]
    sums = torch.zeros(3, width, dtype=torch.float64, device=ctx.device)
    indices = deal(bag_sample(bags.split("train"), seed), bags.lengths, ctx.world_size)[ctx.rank]
    for batch in bags.batches(micro_batches(indices, bags.lengths, ROWS_PER_SUM)):
        for start, stop in batch.spans(ROWS_PER_SUM):
            features = batch.instances[start:stop].to(ctx.device, torch.float64)
            count = torch.full_like(features[0], len(features))
            sums += torch.stack([count, features.sum(0), features.square().sum(0)])
    sums = sum_over_ranks(sums, ctx)
    mean, square = sums[1] / sums[0], sums[2] / sums[0]
    return mean, (square - mean.square()).clamp_min(0.0).sqrt()


def bag_sample(indices: list[int], seed: int) -> list[int]:
    """At most 2,048 of the indices, in their order; all of fewer."""
    if len(indices) <= MOST_BAGS:
        return indices
    chosen = np.random.default_rng(seed).choice(len(indices), MOST_BAGS, replace=False)
    return [indices[place] for place in np.sort(chosen)]
