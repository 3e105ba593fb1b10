"""Scale of a target: mean and standard deviation of the training bags' values.

Axis words: bag.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from milcore.errors import InputError


class TargetScale(NamedTuple):
    """Mean and standard deviation of values, in their unit."""

    mean: float
    deviation: float


def target_scale(values: Float[np.ndarray, " bag"]) -> TargetScale:
    """Mean and standard deviation (divided by n) of training values.

    Args:
        values: of the training bags, in the unit of their column.

    Raises:
        InputError: they do not differ, or not by what floating-point numbers can tell.
    """
    if len(values):
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            scale = TargetScale(float(values.mean()), float(values.std()))
        # rounding of a constant such as 0.1 leaves a deviation above 0
        if values.min() < values.max() and 0.0 < scale.deviation < np.inf:
            return scale
    got = f"only {values[0]:g} in {len(values)} training bag(s)" if len(values) else "no training bag"
    if len(values) and values.min() < values.max():
        got = f"{values.min():g} to {values.max():g} in {len(values)} training bags"
    raise InputError(
        f"target_column: expected values that differ in training, with a finite standard deviation, got {got}; "
        "allowed: two values or more; give others, or change split_seed or the fractions"
    )
