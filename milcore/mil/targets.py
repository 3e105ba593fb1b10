"""Table of the targets that a model can be trained for."""

from milcore.config import Target
from milcore.mil.classification import CLASSIFICATION
from milcore.mil.cox import SURVIVAL_COX
from milcore.mil.hazard import SURVIVAL_HAZARD
from milcore.mil.regression import REGRESSION
from milcore.mil.target import ModelTarget

MODEL_TARGETS: dict[Target, ModelTarget] = {
    "classification": CLASSIFICATION,
    "survival_cox": SURVIVAL_COX,
    "survival_hazard": SURVIVAL_HAZARD,
    "regression": REGRESSION,
}
