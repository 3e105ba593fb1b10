"""Validation of classification: mean ``-log P(label)``, and AUROC, by which epochs and trials rank."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from milcore.metrics.auroc import macro_auroc
from milcore.mil.bags.bags import BagEntry
from milcore.training.selection import Validation
from milcore.training.target import TrainingTarget


def validate_classes(entries: Sequence[BagEntry], log_prob: Float[np.ndarray, "bag class"]) -> Validation:
    """Mean ``-log P(label)`` and macro-averaged AUROC of bags."""
    labels = np.array([entry.label for entry in entries], dtype=np.int64)
    loss = -log_prob[np.arange(len(labels)), labels].mean()
    return Validation(float(loss), macro_auroc(labels, log_prob))


CLASSIFICATION = TrainingTarget(metric="auroc", title="AUROC", validate=validate_classes)
