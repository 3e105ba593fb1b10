"""The analytic interval of AUROC, beside the bootstrap's.

DeLong's variance takes slides as independent. Slides of one patient are not: their placements are summed per patient
first, which for one slide each is DeLong's own formula.

Sources: DeLong, DeLong, Clarke-Pearson 1988; Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data",
Biometrics 53. Axis words: slide, patient.
"""

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm, rankdata

from milcore.metrics.classification import ONE_CLASS, Estimate


def delong(labels: Int[np.ndarray, " slide"], scores: Float[np.ndarray, " slide"], patients: list[str]) -> Estimate:
    """AUROC A with ``A +- 1.96 sqrt(var)``, cut to 0 and 1.

    With V(i) the share of slides of the other class that slide i is ranked right against (ties half), m and n the
    numbers of positives and negatives (of all, or of patient k), and sums over patients::

        S10 = I10 / ((I10 - 1) m) sum_k (sum_(i in k, positive) V(i) - m_k A)^2, S01 likewise over negatives
        S11 = I / (I - 1) sum_k (.. positive ..)(.. negative ..)
        var = S10 / m + S01 / n + 2 S11 / (m n)

    I10 and I01 are the numbers of patients with a positive, with a negative slide, I of all.
    """
    positive = labels == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return Estimate(math.nan, reason=ONE_CLASS)
    placements = _placements(scores, positive)
    area = float(placements[positive].mean())
    _, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    over = np.bincount(patient[positive], placements[positive] - area, minlength=patient.max() + 1)
    under = np.bincount(patient[~positive], placements[~positive] - area, minlength=patient.max() + 1)
    of_positive, of_negative = (len(np.unique(patient[of])) for of in (positive, ~positive))
    if min(of_positive, of_negative) < 2:
        return Estimate(area)
    count = len(over)
    s10 = of_positive / ((of_positive - 1) * m) * float(over @ over)
    s01 = of_negative / ((of_negative - 1) * n) * float(under @ under)
    s11 = count / (count - 1) * float(over @ under)
    half = float(norm.ppf(0.975)) * math.sqrt(max(s10 / m + s01 / n + 2 * s11 / (m * n), 0.0))
    return Estimate(area, max(area - half, 0.0), min(area + half, 1.0))


def _placements(scores: Float[np.ndarray, " slide"], positive: np.ndarray) -> Float[np.ndarray, " slide"]:
    """By ranks: the rank among all less the rank in the own class is the number of the other class below."""
    own = np.empty(len(scores))
    own[positive], own[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    below = rankdata(scores) - own
    others = np.where(positive, (~positive).sum(), positive.sum())
    share: np.ndarray = below / others
    return np.where(positive, share, 1.0 - share)
