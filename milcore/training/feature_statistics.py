"""Mean and standard deviation of each feature over the training bags, for standardisation."""

import torch
from jaxtyping import Float
from torch import Tensor

from milcore.mil.bags.bags import Bags
from milcore.mil.bags.dealing import deal, micro_batches
from milcore.training.context import TrainContext, sum_over_ranks

ROWS_PER_SUM = 4096


def feature_statistics(bags: Bags, ctx: TrainContext) -> tuple[Float[Tensor, " feature"], Float[Tensor, " feature"]]:
    """Mean and standard deviation over the instances of the training bags.

    ``std = sqrt(mean(x^2) - mean(x)^2)``, in float64; each rank reads its part of the bags.
    """
    width = bags.instance().shape[-1]
    sums = torch.zeros(3, width, dtype=torch.float64, device=ctx.device)
    indices = deal(bags.split("train"), bags.lengths, ctx.world_size)[ctx.rank]
    for batch in bags.batches(micro_batches(indices, bags.lengths, ROWS_PER_SUM)):
        for start, stop in batch.spans(ROWS_PER_SUM):
            features = batch.instances[start:stop].to(ctx.device, torch.float64)
            count = torch.full_like(features[0], len(features))
            sums += torch.stack([count, features.sum(0), features.square().sum(0)])
    sums = sum_over_ranks(sums, ctx)
    mean, square = sums[1] / sums[0], sums[2] / sums[0]
    return mean, (square - mean.square()).clamp_min(0.0).sqrt()
