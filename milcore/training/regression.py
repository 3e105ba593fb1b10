"""Regression in training: the scale of the target, validation, out-of-fold predictions.

Epochs, trials and folds rank by R2: it measures the predicted numbers themselves, which a correlation does not (it is
the same of all that are twice too large), is the larger the better, and compares folds and columns of any unit.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from milcore.config import RunSpec, TrainConfig
from milcore.errors import InputError
from milcore.metrics.regression.agreement import r2
from milcore.metrics.regression.scale import target_scale
from milcore.metrics.regression.summary import ValuePredictions, r2_estimate
from milcore.mil.bags.bags import BagEntry, value_array
from milcore.mil.inference import BagPrediction
from milcore.mil.model import MILModel
from milcore.mil.regression import huber_losses
from milcore.training.out_of_fold import OutOfFold
from milcore.training.selection import Validation
from milcore.training.target import TrainingTarget


@torch.no_grad()
def prepare_scale(model: MILModel, entries: Sequence[BagEntry]) -> None:
    """Set mean and standard deviation of the training bags' values.

    The bias is 0 at first, so that an untrained model predicts about the mean.

    Raises:
        InputError: the values do not differ.
    """
    model.constants.copy_(torch.tensor(target_scale(value_array(entries)), dtype=torch.float64))


def validate_values(
    entries: Sequence[BagEntry],
    standardised: Float[np.ndarray, "bag 1"],
    scale: Float[Tensor, " constant"],
    config: TrainConfig,
) -> Validation:
    """Mean Huber loss and R2 of bags.

    R2 is NaN where all their values are equal.
    """
    values, constants = value_array(entries), scale.cpu()
    losses = huber_losses(torch.from_numpy(standardised), torch.from_numpy(values), constants, config.huber_delta)
    mean, deviation = constants.tolist()
    return Validation(float(losses.mean()), r2(values, mean + deviation * standardised[:, 0]))


def value_columns(
    entries: Sequence[BagEntry], predictions: Sequence[BagPrediction]
) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """True and predicted value."""
    predicted = [float(prediction.probability[0]) for prediction in predictions]
    return (
        {"value": pa.array(value_array(entries), pa.float64())},
        {"predicted_value": pa.array(predicted, pa.float64())},
    )


def _check_training(entries: Sequence[BagEntry], _: Sequence[str]) -> None:
    """Check that every training bag has a value, and they differ.

    Raises:
        InputError: they have not.
    """
    without = [entry.bag_id for entry in entries if entry.value is None]
    if without:
        raise InputError(
            f"bags: expected training bags with a value, got none of {len(without)} bag(s), such as {without[0]}; "
            "allowed: bags with values; give them, or change splits"
        )
    target_scale(value_array(entries))


def _out_of_fold(predictions: pa.Table, spec: RunSpec) -> OutOfFold:
    """R2 of the bags that folds left out."""
    true, predicted, fold = (predictions[name].to_numpy() for name in ("value", "predicted_value", "fold"))
    of_all = ValuePredictions(true, predicted, predictions["patient_id"].to_pylist())
    pooled = r2_estimate(of_all, spec.train.seed)
    of_folds = tuple(r2(true[fold == k], predicted[fold == k]) for k in range(spec.folds))
    return OutOfFold(spec.folds, len(predictions), pooled, pooled, of_folds, spec.train.target)


REGRESSION = TrainingTarget(
    prepare=prepare_scale,
    validate=validate_values,
    fit_scale=None,
    columns=value_columns,
    check_training=_check_training,
    out_of_fold=_out_of_fold,
)
