"""Bags of features whose value is set by planted instances: the bags of ``survival_bags``, with a number for each."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tests.survival_bags import SurvivalPlan, survival_bags

MEAN, SLOPE = 50.0, 10.0
# in units of the slope, as the grade, which is uniform on -1 to 1
NOISE = 0.2


class RegressionBags(NamedTuple):
    """A cohort of synthetic bags and its truths.

    Args:
        features: of each patient's instances.
        expected: of each patient, by the grade of its planted instances.
        value: the same with noise.
    """

    features: tuple[Float[np.ndarray, "instance feature"], ...]
    expected: Float[np.ndarray, " patient"]
    value: Float[np.ndarray, " patient"]


def regression_bags(
    patients: int, seed: int, slope: float = SLOPE, instances: tuple[int, int] = (20, 40)
) -> RegressionBags:
    """Draw a cohort: ``50 + slope grade`` and normal noise.

    With the slope of 10 the best R2 is ``1 / (1 + 3 * 0.2^2) = 0.89``; with 0 there is no signal.
    """
    plan = SurvivalPlan(patients=patients, instances=instances, log_hazard=1.0, censored=0.0, seed=seed)
    cohort, random = survival_bags(plan), np.random.default_rng([seed, 1])
    expected = MEAN + slope * cohort.risk
    return RegressionBags(cohort.features, expected, expected + SLOPE * NOISE * random.normal(size=patients))
