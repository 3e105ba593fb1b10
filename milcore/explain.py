"""What a model says of bags, and which instances it looked at: the one forward pass behind every evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from milcore.bags import Bags, micro_batches
from milcore.model import MILModel


class Explained(NamedTuple):
    """Probability of the positive class, and the share of attention of each instance in the store's order."""

    probability: float
    attention: Float[np.ndarray, " instance"]


def attention_by_slide(bags: Bags, said: dict[int, Explained]) -> dict[str, Float[np.ndarray, " instance"]]:
    """The attention of each slide of the explained bags, as shares of its bag's."""
    return {
        slide_id: attention
        for index, its in said.items()
        for slide_id, attention in bags.entries[index].by_slide(its.attention).items()
    }


@torch.no_grad()
def explain(model: MILModel, bags: Bags, indices: Sequence[int], device: torch.device) -> dict[int, Explained]:
    """Run the model over bags, without dropout.

    Args:
        model: moved to the device and left in evaluation mode.
        bags: read as they are needed.
        indices: of the bags to explain.
        device: where to compute.
    """
    model.to(device).eval()
    groups = micro_batches(indices, bags.lengths, model.instance_budget(bags.instance()))
    said: dict[int, Explained] = {}
    for group, batch in zip(groups, bags.batches(groups), strict=True):
        output = model.explain(batch)
        probability = output.log_prob[:, 1].double().exp().cpu().tolist()
        weights = np.split(output.attention.double().cpu().numpy(), np.cumsum([bags.lengths[i] for i in group])[:-1])
        said |= {index: Explained(*its) for index, *its in zip(group, probability, weights, strict=True)}
    return said
