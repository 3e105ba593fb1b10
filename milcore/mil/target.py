"""Target in the room of models: width of the head, values, and loss."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from milcore.config import TrainConfig
from milcore.mil.bags.bags import BagEntry


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
    """Loss of each bag alone, from outputs, entries, and constants of the model."""

    losses: Callable[
        [Float[Tensor, "bag output"], Sequence[BagEntry], Float[Tensor, " constant"], TrainConfig],
        Float[Tensor, " bag"],
    ]


class JointLoss(NamedTuple):
    """Loss across the bags of a global batch, and the weight of a batch.

    Args:
        loss: from outputs in fp64 and entries of the bags.
        weight: as of ``BatchLoss``, from the entries alone; a batch of weight 0 is left out.
    """

    loss: Callable[[Float[np.ndarray, "bag output"], Sequence[BagEntry]], BatchLoss]
    weight: Callable[[Sequence[BagEntry]], float]


class TargetConstants(NamedTuple):
    """Numbers in fp64 that training patients set, kept with the weights.

    Args:
        name: in ``model.safetensors``.
        count: how many, by the settings.
    """

    name: str
    count: Callable[[TrainConfig], int]


class ModelTarget(NamedTuple):
    """Row of a target in the table of models.

    Args:
        logits: of the classifier, by number of classes and settings.
        width: columns of a bag's output, by the same.
        constants: such as cut points of time; None where the target has none.
        output: of each bag, from log-sigmoids of minus and plus its logits.
        values: that are reported, from outputs in fp64, the constants of the model, and their mean over the models of a
            run; the mean over these models is taken of them.
        logit_of: logit for a class, from those of the classifier and the constants of the model; of survival the score,
            or the mean over intervals, of regression the part of the value.
        contrast: of a column with the others, of survival the risk, of regression the value without the mean, from
            outputs and constants; its change is what an instance contributes.
        loss: of each bag alone, or of all bags of a global batch.
    """

    logits: Callable[[int, TrainConfig], int]
    width: Callable[[int, TrainConfig], int]
    constants: TargetConstants | None
    output: Callable[[Float[Tensor, "bag sign logit"]], Float[Tensor, "bag output"]]
    values: Callable[
        [Float[Tensor, "bag output"], Float[Tensor, " constant"], Float[Tensor, " constant"]],
        Float[Tensor, "bag value"],
    ]
    logit_of: Callable[[Float[Tensor, "row logit"], int, Float[Tensor, " constant"]], Float[Tensor, " row"]]
    contrast: Callable[[Float[Tensor, "bag output"], int, Float[Tensor, " constant"]], Float[Tensor, " bag"]]
    loss: BagLoss | JointLoss
