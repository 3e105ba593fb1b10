"""Division of whole sites into parts, such as folds, with the classes' shares alike.

Preserved-site folds: Howard et al. 2021, Nature Communications 12:4423. The paper minimises the sum of squared
deviations of patient counts. Here it is the largest deviation of a class's share, which is linear: a mixed-integer
linear program, and a rare class weighs as much as a frequent one.

Axis words: site, stratum (class or event status), part.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from milcore.errors import MILError

# of the search, times sites, parts and strata: a limit of time would make splits depend on the machine's speed
NODES, FEWEST_NODES = 2_000_000, 200
INFEASIBLE = 2  # status of scipy's milp


class SiteDivision(NamedTuple):
    """Part of each site.

    Args:
        part: of each site.
        deviation: largest difference between a stratum's share in a part and the share that was asked for.
        is_optimal: False where the limit ended the search, and this is the best that was found.
    """

    part: Int[np.ndarray, " site"]
    deviation: float
    is_optimal: bool


def divide_sites(
    counts: Int[np.ndarray, "site stratum"], shares: Sequence[float], training: int | None = None
) -> SiteDivision | None:
    """Divide sites into parts by the smallest largest deviation of a stratum's share.

    ``min max_pk |sum_s x_sp n_sk / N_k - a_p|`` over ``x_sp`` in {0, 1}, each site in one part and no part empty.

    Args:
        counts: patients ``n_sk``; each stratum has some.
        shares: ``a_p`` of the parts, above 0, with the sum 1.
        training: part that is trained on, which gets patients of every stratum. None: each part is left out in turn,
            and the others have patients of every stratum.

    Returns:
        None where no division does all this.

    Raises:
        MILError: the solver fails.
    """
    # larger sites first, which also names the parts where they are alike
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    asked, sorted_counts = np.asarray(shares, np.float64), counts[order]
    # the solver ends with an error where presolve, or its absence, meets a rare fault of its own
    tries = (_solve(sorted_counts, asked, training, presolve) for presolve in (False, True))
    result = next((result for result in tries if result.x is not None or result.status == INFEASIBLE), None)
    if result is None:
        raise MILError(f"sites: expected a division of {len(counts)} sites, got an error of scipy.optimize.milp")
    if result.x is None:
        return None
    part = np.empty(len(counts), np.int64)
    part[order] = result.x[:-1].reshape(len(counts), len(asked)).argmax(axis=1)
    of_part = np.stack([counts[part == p].sum(axis=0) for p in range(len(asked))])
    deviation = np.abs(of_part / counts.sum(axis=0) - asked[:, None]).max()
    return SiteDivision(part, float(deviation), result.status == 0)


def _solve(
    counts: Int[np.ndarray, "site stratum"], shares: Float[np.ndarray, " part"], training: int | None, presolve: bool
) -> OptimizeResult:
    """Solution of the program: ``x_sp`` by site and part, and the deviation.

    Rows are in patients, which are whole numbers: ``|sum_s x_sp n_sk - a_p N_k| <= N_k deviation``.
    """
    (sites, strata), parts = counts.shape, len(shares)
    totals = counts.sum(axis=0)
    each_site = sparse.kron(sparse.eye_array(sites), np.ones((1, parts)))
    each_part = sparse.kron(np.ones((1, sites)), sparse.eye_array(parts))
    # row of stratum k and part p: patients of k in p
    of_strata = sparse.kron(counts.T, sparse.eye_array(parts))
    asked, deviation = np.outer(totals, shares).ravel(), np.repeat(totals, parts)[:, None]
    if training is None:
        most, least = np.repeat(totals - 1, parts), np.zeros(strata * parts)
    else:
        most, least = np.repeat(totals, parts), np.tile(np.arange(parts) == training, strata).astype(np.float64)
    constraints = [
        LinearConstraint(_with_column(each_site), 1, 1),
        LinearConstraint(_with_column(each_part), 1, np.inf),
        LinearConstraint(_with_column(of_strata), least, most),
        LinearConstraint(_with_column(of_strata, -deviation), -np.inf, asked),
        LinearConstraint(_with_column(of_strata, deviation), asked, np.inf),
    ]
    highest = np.ones((sites, parts))
    if training is None and np.ptp(shares) == 0.0:
        # parts are alike: the i-th site is in one of the first i
        highest = np.tril(highest)
    bounds = Bounds(np.append(np.zeros(sites * parts), _least_deviation(totals, shares)), np.append(highest, 1.0))
    goal, integral = (np.append(np.full(sites * parts, value), 1.0 - value) for value in (0.0, 1.0))
    nodes = max(FEWEST_NODES, NODES // (sites * parts * strata))
    limits = {"node_limit": nodes, "presolve": presolve}
    return milp(goal, constraints=constraints, integrality=integral, bounds=bounds, options=limits)


def _with_column(matrix: sparse.sparray, column: Int[np.ndarray, "row 1"] | None = None) -> sparse.csr_array:
    """The matrix with a column for the deviation."""
    last = np.zeros((matrix.shape[0], 1)) if column is None else column
    return sparse.csr_array(sparse.hstack([matrix, sparse.csr_array(last)]))


def _least_deviation(totals: Int[np.ndarray, " stratum"], shares: Float[np.ndarray, " part"]) -> float:
    """Deviation that whole patients cannot go below, were they divided one by one.

    It ends a search that has reached it. Numbers are rounded so that they add up, those of largest fraction up.
    """
    return max(_rounding(int(total), shares) / int(total) for total in totals)


def _rounding(total: int, shares: Float[np.ndarray, " part"]) -> float:
    wanted = total * shares
    fractions = np.sort(wanted - np.floor(wanted))
    up = min(max(total - int(np.floor(wanted).sum()), 0), len(shares))
    down = fractions[: len(shares) - up]
    return float(max([0.0, *down, *(1.0 - fractions[len(shares) - up :])]))
