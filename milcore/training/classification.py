"""Validation of classification: mean ``-log P(label)``, and AUROC, by which epochs and trials rank."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from milcore.config import RunSpec, TrainConfig
from milcore.errors import InputError
from milcore.metrics.auroc import auroc, macro_auroc
from milcore.metrics.classification import Estimate, auroc_estimate
from milcore.metrics.newcombe import newcombe
from milcore.mil.bags.bags import BagEntry
from milcore.mil.inference import BagPrediction
from milcore.training.out_of_fold import OutOfFold
from milcore.training.selection import Validation
from milcore.training.target import TrainingTarget


def validate_classes(
    entries: Sequence[BagEntry],
    log_prob: Float[np.ndarray, "bag class"],
    _: Float[Tensor, " constant"],
    __: TrainConfig,
) -> Validation:
    """Mean ``-log P(label)`` and macro-averaged AUROC of bags."""
    labels = np.array([entry.label for entry in entries], dtype=np.int64)
    loss = -log_prob[np.arange(len(labels)), labels].mean()
    return Validation(float(loss), macro_auroc(labels, log_prob))


def _columns(
    entries: Sequence[BagEntry], predictions: Sequence[BagPrediction]
) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """Label, and the probability of the positive class of two."""
    labels = pa.array([entry.label for entry in entries], pa.int64())
    positive = pa.array([prediction.probability[1] for prediction in predictions], pa.float64())
    return {"label": labels}, {"probability": positive}


def _check_training(entries: Sequence[BagEntry], names: Sequence[str]) -> None:
    """Check that every class has a training bag.

    Raises:
        InputError: a class has none, or there is only one.
    """
    labels = {entry.label for entry in entries}
    lacking = [name for label, name in enumerate(names) if label not in labels]
    if lacking or len(labels) < 2:
        raise InputError(
            f"labels: expected training bags of two or more classes, got none of {', '.join(lacking) or 'a second'}; "
            "allowed: at least one bag each; add some, or change splits"
        )


def _out_of_fold(predictions: pa.Table, spec: RunSpec) -> OutOfFold:
    """AUROC of the bags that folds left out."""
    labels, probability, fold = (predictions[name].to_numpy() for name in ("label", "probability", "fold"))
    if len(spec.classes) > 2:
        undefined = Estimate(math.nan, reason="defined for two classes")
        return OutOfFold(spec.folds, len(predictions), undefined, undefined, ())
    patients = predictions["patient_id"].to_pylist()
    resampled = auroc_estimate(labels, np.stack([1 - probability, probability], axis=1), patients, spec.train.seed)
    of_folds = tuple(auroc(labels[fold == k], probability[fold == k]) for k in range(spec.folds))
    return OutOfFold(spec.folds, len(predictions), newcombe(labels, probability, patients), resampled, of_folds)


CLASSIFICATION = TrainingTarget(
    prepare=None,
    validate=validate_classes,
    fit_scale=None,
    columns=_columns,
    check_training=_check_training,
    out_of_fold=_out_of_fold,
)
