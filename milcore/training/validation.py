"""Validation of a model in training, over all ranks."""

import math

import numpy as np
import torch
import torch.distributed as dist

from milcore.config import SplitName, Target, TrainConfig
from milcore.mil.bags.bags import Bags
from milcore.mil.bags.dealing import deal, micro_batches
from milcore.mil.model import MILModel
from milcore.training.context import TrainContext
from milcore.training.selection import Validation, metric_name
from milcore.training.targets import TRAINING_TARGETS


def validate(config: TrainConfig, model: MILModel, bags: Bags, budget: int, ctx: TrainContext) -> dict[str, float]:
    """``val_loss`` and ``val_<metric>``; NaN where they are undefined.

    Args:
        config: whose target is measured.
        model: computes without dropout.
        bags: those of split ``val`` are predicted.
        budget: instances that one rank computes on at once.
        ctx: of this rank.
    """
    predictions = predict_split(model, bags, "val", budget, ctx)
    validation = Validation(math.nan, math.nan)
    if predictions:
        entries = [bags.entries[index] for index in predictions]
        outputs = np.array(list(predictions.values()), dtype=np.float64)
        validation = TRAINING_TARGETS[config.target].validate(entries, outputs, model.constants, config)
    return {"val_loss": validation.loss, metric_name(config.target): validation.metric}


def validation_of(metrics: dict[str, float], target: Target) -> Validation:
    """The validation among the metrics of an epoch."""
    return Validation(metrics["val_loss"], metrics[metric_name(target)])


@torch.no_grad()
def predict_split(
    model: MILModel, bags: Bags, split: SplitName, budget: int, ctx: TrainContext
) -> dict[int, list[float]]:
    """Outputs for every bag of a split, on every rank, by ascending index.

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
    return dict(sorted(gather_by_index(predictions, ctx).items()))


def gather_by_index(predictions: dict[int, list[float]], ctx: TrainContext) -> dict[int, list[float]]:
    """The outputs of all ranks by index of their bag, on every rank."""
    if ctx.world_size == 1:
        return predictions
    of_ranks: list[dict[int, list[float]]] = [{} for _ in range(ctx.world_size)]
    dist.all_gather_object(of_ranks, predictions)
    return {index: values for of_rank in of_ranks for index, values in of_rank.items()}
