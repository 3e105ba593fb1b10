"""What a model says of bags, and which instances it looked at: the one forward pass behind every evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from milcore.bags import Bags, micro_batches
from milcore.config import TrainConfig
from milcore.model import MILModel


class Explained(NamedTuple):
    """Probability of the positive class, and the share of attention of each instance in the store's order."""

    probability: float
    attention: Float[np.ndarray, " instance"]


@torch.no_grad()
def explain(
    model: MILModel, bags: Bags, indices: Sequence[int], config: TrainConfig, device: torch.device
) -> dict[int, Explained]:
    """Run the model over bags, without dropout.

    Args:
        model: moved to the device and left in evaluation mode.
        bags: read as they are needed.
        indices: of the bags to explain.
        config: of the run: instances in one pass, and double precision where it says so.
        device: where to compute.
    """
    model.to(device).eval()
    dtype = torch.float64 if config.precision == "fp64" else torch.float32
    groups = micro_batches(indices, bags.lengths, config.max_instances)
    said: dict[int, Explained] = {}
    for group, batch in zip(groups, bags.batches(groups), strict=True):
        output = model.explain(batch.to(device, dtype))
        probability = output.log_prob[:, 1].double().exp().cpu().tolist()
        weights = np.split(output.attention.double().cpu().numpy(), np.cumsum([bags.lengths[i] for i in group])[:-1])
        said |= {index: Explained(*its) for index, *its in zip(group, probability, weights, strict=True)}
    return said
