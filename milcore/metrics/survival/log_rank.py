"""Log-rank test of equal survival in groups of patients.

Axis words: patient, time, group.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from scipy.stats import chi2

from milcore.errors import InputError
from milcore.metrics.survival.outcome import Outcome, TimeCounts


class LogRankTest(NamedTuple):
    """Statistic of the log-rank test, its degrees of freedom and p.

    Args:
        statistic: chi-squared with that many degrees of freedom where survival is equal.
        degrees: groups less one.
        p: probability of a statistic as large or larger, 0 to 1.
    """

    statistic: float
    degrees: int
    p: float


def log_rank(outcome: Outcome, group: Integer[np.ndarray, " patient"]) -> LogRankTest:
    """Log-rank test that k groups have equal survival.

    With n_k of n patients at risk and d events at a time, ``O_k - E_k`` sums ``d_k - d n_k / n`` over times, and its
    covariance sums ``d (n - d) / (n - 1) (n_k / n) (delta_kl - n_l / n)``; the statistic is the quadratic form of the
    first k - 1 in the inverse covariance.

    Sources: Mantel 1966, Cancer Chemotherapy Reports 50:163-170; Fleming, Harrington 1981, Communications in
    Statistics 10:763-794.

    Args:
        outcome: of all groups.
        group: of each patient, any integers.

    Raises:
        InputError: there are fewer than two groups, no event, or a group that was never at risk at an event.
    """
    names, index = np.unique(group, return_inverse=True)
    if len(names) < 2 or not outcome.events:
        raise InputError(
            f"log-rank test: expected two groups and an event, got {len(names)} and {outcome.events}; "
            "choose patients that hold both"
        )
    counts = TimeCounts.of(outcome, (index == np.arange(len(names))[:, None]).astype(np.float64))
    gap, covariance = _gap(counts)
    if np.linalg.matrix_rank(covariance) < len(names) - 1:
        raise InputError(
            "log-rank test: expected each group at risk when an event comes, got one that is not; leave that group out"
        )
    statistic = float(gap @ np.linalg.solve(covariance, gap))
    return LogRankTest(statistic, len(names) - 1, float(chi2.sf(statistic, len(names) - 1)))


def _gap(counts: TimeCounts) -> tuple[Float[np.ndarray, " group"], Float[np.ndarray, "group group"]]:
    """Observed less expected events of all groups but the last, and their covariance."""
    at_risk, events = counts.at_risk.sum(axis=0), counts.events.sum(axis=0)
    times = events > 0
    share = counts.at_risk[:-1, times] / at_risk[times]
    n, d = at_risk[times], events[times]
    gap = (counts.events[:-1, times] - d * share).sum(axis=1)
    spread = d * (n - d) / np.maximum(n - 1, 1)
    covariance = np.diag((spread * share).sum(axis=1)) - (share * spread) @ share.T
    return gap, covariance
