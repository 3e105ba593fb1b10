"""All metrics of predicted numbers against true ones, each with its interval.

Intervals are of resampled patients. A metric that a split cannot define, such as R2 of equal values, is NaN with a
reason.

Axis words: bag, patient, resample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from milcore.metrics.classification import Estimate, estimate
from milcore.metrics.regression.agreement import (
    LIMIT,
    weighted_deviation,
    weighted_mean,
    weighted_pearson,
    weighted_r2,
    weighted_spearman,
)
from milcore.metrics.resamples import RESAMPLES, patient_weights

NO_BAG = "the split holds no bag"
ONE_BAG = "the split holds one bag"
CONSTANT_TRUTH = "all true values of the split are equal"
CONSTANT_PREDICTION = "all predicted values of the split are equal"
TOO_ALIKE = "the values of the split differ by less than floating-point numbers can tell"


class ValuePredictions(NamedTuple):
    """True and predicted value of the bags of a split, in one unit.

    Args:
        true: of each bag.
        predicted: of each bag.
        patients: of each bag.
        sites: of each bag, empty where unknown.
    """

    true: Float[np.ndarray, " bag"]
    predicted: Float[np.ndarray, " bag"]
    patients: Sequence[str]
    sites: Sequence[str] = ()

    @property
    def difference(self) -> Float[np.ndarray, " bag"]:
        """Predicted less true value of each bag."""
        difference: np.ndarray = self.predicted - self.true
        return difference

    def of_site(self, site: str) -> "ValuePredictions":
        """Those of one site."""
        members = np.flatnonzero(np.asarray(self.sites) == site)
        return ValuePredictions(
            self.true[members], self.predicted[members], [self.patients[int(index)] for index in members]
        )


@dataclass(frozen=True, slots=True)
class RegressionMetrics:
    """Metrics of a split whose target is a number.

    Args:
        bags: number of them.
        patients: number of them.
        overall: metrics by name: ``r2``, ``mae``, ``rmse``, ``pearson``, ``spearman``, ``bias``, ``lower_limit``,
            ``upper_limit``; errors and limits in the unit of the values.
        of_sites: metrics of each of several sites.
    """

    bags: int
    patients: int
    overall: dict[str, Estimate]
    of_sites: dict[str, "RegressionMetrics"] = field(default_factory=dict)


def regression_metrics(predictions: ValuePredictions, seed: int) -> RegressionMetrics:
    """Measure predicted numbers, with 95 % intervals of resampled patients.

    ``r2`` is the coefficient of determination, ``mae`` and ``rmse`` the mean absolute and root mean square error,
    ``pearson`` and ``spearman`` correlations. ``bias`` is the mean of predicted less true value; ``lower_limit`` and
    ``upper_limit`` are the 95 % limits of agreement, the bias less and plus 1.96 standard deviations of the differences
    (divided by n - 1), between which 95 % of the differences lie where they are normal.

    Source of the limits: Bland, Altman 1986, Lancet 327:307-310.

    Args:
        predictions: of the bags that are measured.
        seed: of the resampling.
    """
    whole = _measure(predictions, seed)
    sites = sorted(set(predictions.sites) - {""})
    if len(sites) > 1:
        for site in sites:
            whole.of_sites[site] = _measure(predictions.of_site(site), seed)
    return whole


def r2_estimate(predictions: ValuePredictions, seed: int) -> Estimate:
    """R2 with the 95 % interval of resampled patients."""
    values = weighted_r2(_weights(predictions, seed), predictions.true, predictions.predicted)
    return _estimate(values, _truth_reason(predictions))


def _measure(predictions: ValuePredictions, seed: int) -> RegressionMetrics:
    """All metrics of one set of bags."""
    weights, (true, predicted, *_) = _weights(predictions, seed), predictions
    difference = predictions.difference
    bias, deviation = weighted_mean(weights, difference), weighted_deviation(weights, difference)
    count = len(true)
    none = NO_BAG if not count else None
    of_truth = _truth_reason(predictions)
    of_both = of_truth or (CONSTANT_PREDICTION if count and predicted.min() == predicted.max() else None)
    of_spread = none or (ONE_BAG if count == 1 else None)
    values = {
        "r2": (weighted_r2(weights, true, predicted), of_truth),
        "mae": (weighted_mean(weights, np.abs(difference)), none),
        "rmse": (np.sqrt(weighted_mean(weights, difference**2)), none),
        "pearson": (weighted_pearson(weights, true, predicted), of_both),
        "spearman": (weighted_spearman(weights, true, predicted), of_both),
        "bias": (bias, none),
        "lower_limit": (bias - LIMIT * deviation, of_spread),
        "upper_limit": (bias + LIMIT * deviation, of_spread),
    }
    return RegressionMetrics(
        count, len(set(predictions.patients)), {name: _estimate(*each) for name, each in values.items()}
    )


def _weights(predictions: ValuePredictions, seed: int) -> Float[np.ndarray, "resample bag"]:
    """All bags once in the first row, resamples of the patients in the others."""
    count = len(predictions.true)
    resamples = patient_weights(list(predictions.patients), RESAMPLES, seed) if count else np.zeros((RESAMPLES, 0))
    return np.concatenate([np.ones((1, count)), resamples])


def _truth_reason(predictions: ValuePredictions) -> str | None:
    """Reason why metrics against the spread of true values are undefined, or None."""
    true = predictions.true
    if not len(true):
        return NO_BAG
    if len(true) == 1:
        return ONE_BAG
    return CONSTANT_TRUTH if true.min() == true.max() else None


def _estimate(values: Float[np.ndarray, " resample"], reason: str | None) -> Estimate:
    """A metric of which the first row is the value, the others resamples.

    Args:
        values: NaN where undefined.
        reason: why the value is undefined; None where it is defined.
    """
    if reason is not None:
        return Estimate(math.nan, reason=reason)
    return estimate(float(values[0]), values[1:], TOO_ALIKE)
