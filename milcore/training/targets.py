"""Table of the targets in the room of training."""

from milcore.config import Target
from milcore.training.classification import CLASSIFICATION
from milcore.training.regression import REGRESSION
from milcore.training.survival import SURVIVAL_COX, SURVIVAL_HAZARD
from milcore.training.target import TrainingTarget

TRAINING_TARGETS: dict[Target, TrainingTarget] = {
    "classification": CLASSIFICATION,
    "survival_cox": SURVIVAL_COX,
    "survival_hazard": SURVIVAL_HAZARD,
    "regression": REGRESSION,
}
