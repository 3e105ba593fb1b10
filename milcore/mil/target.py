"""Target in the room of models: width of the head, values, and loss."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from milcore.cohort.survival import FollowUp
from milcore.config import TrainConfig


class BatchLoss(NamedTuple):
    """Loss of a global batch whose bags are compared with each other.

    Args:
        loss: mean over what counts.
        weight: of the batch in the mean of an epoch.
        derivative: of the loss by the output of each bag.
    """

    loss: float
    weight: float
    derivative: Float[np.ndarray, " bag"]


class BagLoss(NamedTuple):
    """Loss of each bag alone, from outputs and labels."""

    losses: Callable[[Float[Tensor, "bag output"], Int[Tensor, " bag"], TrainConfig], Float[Tensor, " bag"]]


class JointLoss(NamedTuple):
    """Loss across the bags of a global batch, from outputs in fp64 and follow-up."""

    loss: Callable[[Float[np.ndarray, "bag output"], Sequence[FollowUp | None]], BatchLoss]


class ModelTarget(NamedTuple):
    """Row of a target in the table of models.

    Args:
        logits: of the classifier, by number of classes.
        width: columns of a bag's output, by number of classes.
        output: of each bag, from log-sigmoids of minus and plus its logits.
        values: that are reported, from outputs in fp64; the mean over several models is taken of them.
        logit_of: logit for a class, from those of the classifier; of survival the score.
        contrast: of a column with the others; a change of it is what an instance contributes.
        loss: of each bag alone, or of all bags of a global batch.
    """

    logits: Callable[[int], int]
    width: Callable[[int], int]
    output: Callable[[Float[Tensor, "bag sign logit"]], Float[Tensor, "bag output"]]
    values: Callable[[Float[Tensor, "bag output"]], Float[Tensor, "bag output"]]
    logit_of: Callable[[Float[Tensor, "row logit"], int], Float[Tensor, " row"]]
    contrast: Callable[[Float[Tensor, "bag output"], int], Float[Tensor, " bag"]]
    loss: BagLoss | JointLoss
