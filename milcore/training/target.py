"""Target in the room of training: validation, and the scale of a trained model."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from milcore.mil.bags.bags import BagEntry
from milcore.mil.inference import BagPrediction
from milcore.mil.model import MILModel
from milcore.training.selection import Validation


class TrainingTarget(NamedTuple):
    """Row of a target in the table of training.

    Args:
        validate: loss and metric of bags, from their outputs; at least one bag.
        fit_scale: changes a trained model to the scale of its target, from the outputs of its training bags; None where
            there is nothing to change.
        columns: of bags and their predictions: of the manifest's values, and of the model's.
        check_training: refuses training bags that nothing can be learned from; they come with class names.
    """

    validate: Callable[[Sequence[BagEntry], Float[np.ndarray, "bag output"]], Validation]
    fit_scale: Callable[[MILModel, Float[np.ndarray, "bag output"]], None] | None
    columns: Callable[[Sequence[BagEntry], Sequence[BagPrediction]], tuple[dict[str, pa.Array], dict[str, pa.Array]]]
    check_training: Callable[[Sequence[BagEntry], Sequence[str]], None]
