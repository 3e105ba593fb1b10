"""Bootstrap resamples of patients as rows of weights. No torch, no I/O.

A resample is a row of weights: how often each slide occurs in it. The unit that is drawn is the patient: two slides of
one patient are not independent.

Axis words: slide, patient, resample.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
# of an array in one expression: all resamples of a thousand slides, fewer at a time of more
MOST_VALUES = 2_000_000


def patient_weights(patients: list[str], resamples: int, seed: int) -> Float[np.ndarray, "resample slide"]:
    """Number of times each slide occurs in each resample of the patients.

    n of n patients are drawn with replacement, each with all its slides.
    """
    names, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    random, share = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
    weights = np.empty((resamples, len(patient)))
    for rows in row_blocks(weights):
        draws = random.multinomial(len(names), share, size=len(weights[rows]))
        weights[rows] = draws[:, patient]
    return weights


def row_blocks(weights: Float[np.ndarray, "resample slide"]) -> Iterator[slice]:
    """Blocks of resamples, so small that memory holds several arrays of each."""
    step = max(1, MOST_VALUES // max(1, weights.shape[1]))
    return (slice(start, start + step) for start in range(0, max(1, len(weights)), step))


def ratio(numerator: Float[np.ndarray, "..."], denominator: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """``numerator / denominator``, NaN where the denominator is 0."""
    nan = np.full(np.shape(numerator), math.nan)
    quotient: np.ndarray = np.divide(numerator, denominator, out=nan, where=denominator != 0)
    return quotient
