"""Table of the targets in the room of evaluation."""

from milcore.config import Target
from milcore.evaluation.classification import CLASSIFICATION
from milcore.evaluation.regression import REGRESSION
from milcore.evaluation.survival import SURVIVAL
from milcore.evaluation.target import EvaluationTarget

EVALUATION_TARGETS: dict[Target, EvaluationTarget] = {
    "classification": CLASSIFICATION,
    "survival_cox": SURVIVAL,
    "survival_hazard": SURVIVAL,
    "regression": REGRESSION,
}
