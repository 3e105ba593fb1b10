"""Confidence interval of AUROC that has width at 0 and 1 too.

Where no slide is ranked wrongly, no resample of the patients can be, and DeLong's variance is 0: both intervals shrink
to a point. Here the variance is that of the AUROC at the end of the interval, as in Wilson's interval of a proportion.

Source: Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2",
Statistics in Medicine 25:559-573, method 5; its variance is that of Hanley, McNeil 1982, Radiology 143:29-36.
"""

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.stats import norm

from milcore.metrics.auroc import auroc
from milcore.metrics.classification import ONE_CLASS, Estimate

# nearest to an AUROC of 1 that is looked for: ends of intervals are told to three decimals
TINY = 1e-9


def newcombe(labels: Int[np.ndarray, " slide"], scores: Float[np.ndarray, " slide"], patients: list[str]) -> Estimate:
    """AUROC A with Newcombe's interval.

    It holds all t with ``|A - t| <= 1.96 sqrt(var(t))``, where
    ``var(t) = t (1 - t) (1 + N (1 - t) / (2 - t) + N t / (1 + t)) / (m n)`` with ``N = (m + n) / 2 - 1``. Slides of one
    patient are not independent: m and n are the numbers of patients with a positive, with a negative slide.
    """
    area = auroc(labels, scores)
    if math.isnan(area):
        return Estimate(area, reason=ONE_CLASS)
    m, n = (len({patient for patient, of in zip(patients, labels, strict=True) if of == label}) for label in (1, 0))
    return Estimate(area, _low(area, m, n), 1.0 - _low(1.0 - area, m, n))


def _low(area: float, m: int, n: int) -> float:
    """Lower end of the interval.

    The upper end mirrors it, since t and ``1 - t`` have the same variance.
    """
    mean = (m + n) / 2 - 1
    quantile = float(norm.ppf(0.975))

    def excess(t: float) -> float:
        variance = t * (1 - t) * (1 + mean * (1 - t) / (2 - t) + mean * t / (1 + t)) / (m * n)
        return area - t - quantile * math.sqrt(variance)

    # at 1 itself the variance is 0, which is a root too: the one below is meant
    return float(brentq(excess, 0.0, min(area, 1.0 - TINY))) if area > 0.0 else 0.0
