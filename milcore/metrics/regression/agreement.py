"""Agreement of predicted numbers with true ones, in many resamples at once.

Every function takes rows of weights (how often a bag occurs in a resample) and gives one value a row; a row of ones
gives the metric itself.

Axis words: bag, resample, group (bags of one value).
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from milcore.metrics.resamples import ratio, row_blocks

# half the width of the limits of agreement, in standard deviations of the differences
LIMIT = 1.96

Weights = Float[np.ndarray, "resample bag"]
Values = Float[np.ndarray, " bag"]
OfResamples = Float[np.ndarray, " resample"]


def r2(true: Values, predicted: Values) -> float:
    """Coefficient of determination R2.

    ``1 - sum (y - p)^2 / sum (y - m)^2`` with the mean m of y. NaN where all y are equal, or there is none.

    Args:
        true: y.
        predicted: p.
    """
    return float(weighted_r2(np.ones((1, len(true))), true, predicted)[0])


def weighted_r2(weights: Weights, true: Values, predicted: Values) -> OfResamples:
    """R2 of each resample, against its own mean.

    NaN where all true values of a resample are equal.
    """
    errors = weights @ (true - predicted) ** 2
    total = _sum_of_squares(weights, true, true)
    return np.where(is_constant(weights, true), math.nan, 1.0 - ratio(errors, total))


def weighted_mean(weights: Weights, values: Values) -> OfResamples:
    """Mean of each resample; NaN of one without bags."""
    return ratio(weights @ values, weights.sum(axis=1))


def weighted_pearson(weights: Weights, first: Values, second: Values) -> OfResamples:
    """Pearson's correlation of each resample; NaN where either is constant in one."""
    covariance = _sum_of_squares(weights, first, second)
    a, b = (np.sqrt(np.maximum(_sum_of_squares(weights, values, values), 0.0)) for values in (first, second))
    constant = is_constant(weights, first) | is_constant(weights, second)
    return np.where(constant, math.nan, np.clip(ratio(covariance, a * b), -1.0, 1.0))


def weighted_spearman(weights: Weights, first: Values, second: Values) -> OfResamples:
    """Spearman's correlation of each resample: Pearson's of ranks.

    Equal values have the mean of their ranks. A bag that occurs several times in a resample is as many bags of equal
    values.
    """
    if not len(first):
        return np.full(len(weights), math.nan)
    return _in_blocks(weights, lambda rows: _spearman(rows, first, second))


def weighted_deviation(weights: Weights, values: Values) -> OfResamples:
    """Standard deviation of each resample, from squares over n - 1.

    NaN of fewer than two bags.
    """
    squares = np.where(is_constant(weights, values), 0.0, np.maximum(_sum_of_squares(weights, values, values), 0.0))
    degrees = weights.sum(axis=1) - 1.0
    deviation: np.ndarray = np.sqrt(ratio(squares, np.maximum(degrees, 0.0)))
    return deviation


def is_constant(weights: Weights, values: Values) -> Bool[np.ndarray, " resample"]:
    """True where all bags of a resample have one value.

    It is told by the ends of the values, for rounded sums of a constant need not cancel.
    """
    if not len(values):
        return np.ones(len(weights), bool)

    def width(rows: Weights) -> OfResamples:
        there = rows > 0
        widths: np.ndarray = np.where(there, values, -np.inf).max(axis=1) - np.where(there, values, np.inf).min(axis=1)
        return widths

    constant: np.ndarray = _in_blocks(weights, width) <= 0.0
    return constant


def _sum_of_squares(weights: Weights, first: Values, second: Values) -> OfResamples:
    """``sum w (a - mean a) (b - mean b)`` of each resample.

    Values are centred by the mean of all bags before, so that little is lost where they are far from 0.
    """
    if not len(first):
        return np.zeros(len(weights))
    a, b = first - first.mean(), second - second.mean()
    total: np.ndarray = weights @ (a * b) - ratio((weights @ a) * (weights @ b), weights.sum(axis=1))
    return total


def _spearman(weights: Weights, first: Values, second: Values) -> OfResamples:
    """Weighted correlation of the ranks, which differ from resample to resample."""
    count = weights.sum(axis=1, keepdims=True)
    a, b = (_ranks(weights, values) - (count + 1.0) / 2.0 for values in (first, second))
    product = (weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1)
    return ratio((weights * a * b).sum(axis=1), np.sqrt(product))


def _ranks(weights: Weights, values: Values) -> Float[np.ndarray, "resample bag"]:
    """Rank of each bag's value in each resample, from 1."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    of_group = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: np.ndarray = (of_group.cumsum(axis=1) - (of_group - 1.0) / 2.0)[:, group]
    return ranks


def _in_blocks(weights: Weights, compute: Callable[[Weights], OfResamples]) -> OfResamples:
    """Values of all resamples, computed some at a time so that memory stays small."""
    return np.concatenate([compute(weights[rows]) for rows in row_blocks(weights)])
