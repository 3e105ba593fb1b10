"""Regression: a number of each bag, and Huber's loss of its standardised error.

The classifier's logit ``z`` is the standardised prediction; in the unit of the column it is ``m + s z``, with mean m
and standard deviation s of the training bags' values, which are kept with the weights.

Axes: bag, row.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from milcore.config import TrainConfig
from milcore.mil.bags.bags import BagEntry, value_array
from milcore.mil.cox import signed_logit
from milcore.mil.target import BagLoss, ModelTarget, TargetConstants


def huber_losses(
    standardised: Float[Tensor, "bag 1"],
    values: Float[Tensor, " bag"],
    scale: Float[Tensor, " constant"],
    delta: float,
) -> Float[Tensor, " bag"]:
    """Huber's loss of each bag.

    ``e^2 / 2`` of an error up to delta, ``delta (|e| - delta / 2)`` beyond it, with ``e = z - (y - m) / s``. A value
    far from the others pulls with the slope delta at most.

    Source: Huber 1964, Annals of Mathematical Statistics 35:73-101.

    Args:
        standardised: z, the model's prediction.
        values: y, in the unit of the column.
        scale: mean m and standard deviation s of the training bags.
        delta: in standard deviations.
    """
    mean, deviation = scale
    target = ((values.to(scale) - mean) / deviation).to(standardised)
    return functional.huber_loss(standardised[:, 0], target, reduction="none", delta=delta)


def _losses(standardised: Tensor, entries: Sequence[BagEntry], scale: Tensor, config: TrainConfig) -> Tensor:
    return huber_losses(standardised, torch.from_numpy(value_array(entries)), scale, config.huber_delta)


def _one(_: int, __: TrainConfig) -> int:
    return 1


def _values(standardised: Tensor, scale: Tensor, _: Tensor) -> Float[Tensor, "bag 1"]:
    """Predicted values, by the model's own scale."""
    mean, deviation = scale.to(standardised)
    predicted: Tensor = mean + deviation * standardised
    return predicted


def _part(logits: Float[Tensor, "row 1"], _: int, scale: Tensor) -> Float[Tensor, " row"]:
    """Part of a value, without the mean, in its unit."""
    return scale[1] * logits[:, 0]


REGRESSION = ModelTarget(
    logits=_one,
    width=_one,
    constants=TargetConstants("target_scale", lambda _: 2),
    output=signed_logit,
    values=_values,
    logit_of=_part,
    contrast=_part,
    loss=BagLoss(_losses),
)
