"""Target in the room of training: preparation, validation, scale, and folds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from milcore.config import RunSpec, TrainConfig
from milcore.mil.bags.bags import BagEntry
from milcore.mil.inference import BagPrediction
from milcore.mil.model import MILModel
from milcore.training.out_of_fold import OutOfFold
from milcore.training.selection import Validation


class TrainingTarget(NamedTuple):
    """Row of a target in the table of training.

    Args:
        prepare: sets what training bags say of a model before its first step; None where there is nothing to set.
        validate: loss and metric of bags, from their outputs, the constants of the model and the settings; at least one
            bag.
        fit_scale: changes a trained model to the scale of its target, from the outputs of its training bags; None where
            there is nothing to change.
        columns: of bags and their predictions: of the manifest's values, and of the model's.
        check_training: refuses training bags that nothing can be learned from; they come with class names.
        out_of_fold: metric of the bags that folds left out: of all, with intervals, and of each fold; from columns
            patient_id, fold and those of the target.
    """

    prepare: Callable[[MILModel, Sequence[BagEntry]], None] | None
    validate: Callable[
        [Sequence[BagEntry], Float[np.ndarray, "bag output"], Float[Tensor, " constant"], TrainConfig], Validation
    ]
    fit_scale: Callable[[MILModel, Float[np.ndarray, "bag output"]], None] | None
    columns: Callable[[Sequence[BagEntry], Sequence[BagPrediction]], tuple[dict[str, pa.Array], dict[str, pa.Array]]]
    check_training: Callable[[Sequence[BagEntry], Sequence[str]], None]
    out_of_fold: Callable[[pa.Table, RunSpec], OutOfFold]
