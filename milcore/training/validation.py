"""Validation of a model in training, over all ranks: predictions, loss and AUROC."""

import math

import numpy as np
import torch
import torch.distributed as dist

from milcore.config import SplitName
from milcore.metrics.auroc import macro_auroc
from milcore.mil.bags.bags import Bags
from milcore.mil.bags.dealing import deal, micro_batches
from milcore.mil.model import MILModel
from milcore.training.context import TrainContext


def validate(model: MILModel, bags: Bags, budget: int, ctx: TrainContext) -> dict[str, float]:
    """``val_loss`` and ``val_auroc``; NaN where they are undefined.

    Args:
        model: computes without dropout.
        bags: those of split ``val`` are predicted.
        budget: instances that one rank computes on at once.
        ctx: of this rank.
    """
    predictions = predict_split(model, bags, "val", budget, ctx)
    labels = np.array([bags.entries[index].label for index in predictions], dtype=np.int64)
    log_prob = np.array(list(predictions.values()), dtype=np.float64).reshape(-1, bags.classes)
    if len(labels) == 0:
        return {"val_loss": math.nan, "val_auroc": math.nan}
    loss = -log_prob[np.arange(len(labels)), labels].mean()
    return {"val_loss": float(loss), "val_auroc": macro_auroc(labels, log_prob)}


@torch.no_grad()
def predict_split(
    model: MILModel, bags: Bags, split: SplitName, budget: int, ctx: TrainContext
) -> dict[int, list[float]]:
    """Log-probabilities of every bag of a split, on every rank, by ascending index.

    Args:
        model: computes without dropout.
        bags: dealt to the ranks.
        split: of the bags to predict.
        budget: instances that one rank computes on at once.
        ctx: of this rank.
    """
    indices = deal(bags.split(split), bags.lengths, ctx.world_size)[ctx.rank]
    groups = micro_batches(indices, bags.lengths, budget)
    predictions: dict[int, list[float]] = {}
    for group, batch in zip(groups, bags.batches(groups), strict=True):
        predictions.update(zip(group, model(batch, None).tolist(), strict=True))
    return dict(sorted(_gather(predictions, ctx).items()))


def _gather(predictions: dict[int, list[float]], ctx: TrainContext) -> dict[int, list[float]]:
    """The predictions of all ranks, on every rank."""
    if ctx.world_size == 1:
        return predictions
    of_ranks: list[dict[int, list[float]]] = [{} for _ in range(ctx.world_size)]
    dist.all_gather_object(of_ranks, predictions)
    return {index: values for of_rank in of_ranks for index, values in of_rank.items()}
