"""Target in the room of training: the metric that epochs and trials rank by."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from milcore.mil.bags.bags import BagEntry
from milcore.mil.model import MILModel
from milcore.training.selection import Validation


class TrainingTarget(NamedTuple):
    """Row of a target in the table of training.

    Args:
        metric: name of the metric that ranks, as in ``val_<metric>``.
        title: the same for a person.
        validate: loss and metric of bags, from their outputs; at least one bag.
        fit_scale: changes a trained model to the scale of its target, from the outputs of its training bags; None where
            there is nothing to change.
        check_training: refuses training bags that nothing can be learned from; they come with class names.
    """

    metric: str
    title: str
    validate: Callable[[Sequence[BagEntry], Float[np.ndarray, "bag output"]], Validation]
    fit_scale: Callable[[MILModel, Float[np.ndarray, "bag output"]], None] | None
    check_training: Callable[[Sequence[BagEntry], Sequence[str]], None]
