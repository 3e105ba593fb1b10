"""Type in which instance features are stored, a function of their values alone.

float16 halves a store and is exact enough where a column's values are of the order of its spread; around a large mean,
or beyond 65,504, it is not. Axis words: n (instance), d (feature).
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FeatureType = Literal["float16", "float32"]
FeatureArray = npt.NDArray[np.float16] | npt.NDArray[np.float32]

LARGEST_CHANGE = 2.0**-8
_BLOCK_VALUES = 1 << 20


def feature_type(features: npt.NDArray[Any]) -> FeatureType:
    """Type in which features are stored: float16, or float32 where that changes values.

    float16 may change no value by more than 1/256 of its column's standard deviation. Rows with NaN or infinity do not
    count. Whoever computes it, in whatever batches, equal features have equal types.

    Args:
        features: shape (n, d), any numbers.
    """
    count, total, change = 0, np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for rows in _blocks(features):
        with np.errstate(over="ignore"):
            change = np.maximum(change, np.abs(rows.astype(np.float16).astype(rows.dtype) - rows).max(axis=0))
        total += rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
    if not count:
        return "float16"
    mean, squares = total / count, np.zeros_like(total)
    for rows in _blocks(features):
        squares += np.square(rows - mean).sum(axis=0)
    return "float16" if bool((change <= LARGEST_CHANGE * np.sqrt(squares / count)).all()) else "float32"


def _blocks(features: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Finite rows, a few MB at a time, as floating-point numbers."""
    step = max(1, _BLOCK_VALUES // max(1, features.shape[1]))
    for start in range(0, len(features), step):
        rows = features[start : start + step]
        rows = rows if rows.dtype.kind == "f" else rows.astype(np.float64)
        rows = rows[np.isfinite(rows).all(axis=1)]
        if len(rows):
            yield rows
