"""Analytic confidence interval of AUROC by DeLong, for slides clustered in patients.

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
    """AUROC A with the interval ``A +- 1.96 sqrt(var)``, clipped to 0 and 1.

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
    sums_pos = np.bincount(patient[positive], placements[positive] - area, minlength=patient.max() + 1)
    sums_neg = np.bincount(patient[~positive], placements[~positive] - area, minlength=patient.max() + 1)
    i10, i01 = (len(np.unique(patient[slides])) for slides in (positive, ~positive))
    if min(i10, i01) < 2:
        return Estimate(area)
    count = len(sums_pos)
    s10 = i10 / ((i10 - 1) * m) * float(sums_pos @ sums_pos)
    s01 = i01 / ((i01 - 1) * n) * float(sums_neg @ sums_neg)
    s11 = count / (count - 1) * float(sums_pos @ sums_neg)
    half_width = float(norm.ppf(0.975)) * math.sqrt(max(s10 / m + s01 / n + 2 * s11 / (m * n), 0.0))
    return Estimate(area, max(area - half_width, 0.0), min(area + half_width, 1.0))


def _placements(scores: Float[np.ndarray, " slide"], positive: np.ndarray) -> Float[np.ndarray, " slide"]:
    """V(i) of each slide, from ranks.

    The rank among all slides less the rank in the own class is the number of slides of the other class below.
    """
    rank_in_class = np.empty(len(scores))
    rank_in_class[positive], rank_in_class[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    below = rankdata(scores) - rank_in_class
    others = np.where(positive, (~positive).sum(), positive.sum())
    share: np.ndarray = below / others
    return np.where(positive, share, 1.0 - share)
