"""Table of the targets in the room of cohorts."""

from milcore.cohort.classification import CLASSIFICATION
from milcore.cohort.regression import REGRESSION
from milcore.cohort.survival import SURVIVAL_COX, SURVIVAL_HAZARD
from milcore.cohort.target import CohortTarget
from milcore.config import Target

COHORT_TARGETS: dict[Target, CohortTarget] = {
    "classification": CLASSIFICATION,
    "survival_cox": SURVIVAL_COX,
    "survival_hazard": SURVIVAL_HAZARD,
    "regression": REGRESSION,
}
