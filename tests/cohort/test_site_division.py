"""Whole sites are divided as well as any of all possible divisions is."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from jaxtyping import Int

from milcore.cohort import site_division
from milcore.cohort.site_division import divide_sites


def best_deviation(counts: Int[np.ndarray, "site stratum"], shares: Sequence[float], training: int | None) -> float:
    """Smallest largest deviation over all divisions that are allowed; infinite where none is."""
    best = np.inf
    for parts in itertools.product(range(len(shares)), repeat=len(counts)):
        of_part = np.stack([counts[np.array(parts) == part].sum(axis=0) for part in range(len(shares))])
        is_learned = (of_part < counts.sum(axis=0)).all() if training is None else (of_part[training] > 0).all()
        if len(set(parts)) == len(shares) and is_learned:
            best = min(best, np.abs(of_part / counts.sum(axis=0) - np.array(shares)[:, None]).max())
    return float(best)


@pytest.mark.parametrize(
    ("shares", "training"),
    [((1 / 3, 1 / 3, 1 / 3), None), ((0.5, 0.5), None), ((0.55, 0.15, 0.3), 0), ((0.8, 0.2), 0)],
)
def test_no_division_of_all_is_better(shares: tuple[float, ...], training: int | None) -> None:
    for seed in range(12):
        random = np.random.default_rng(seed)
        sites = int(random.integers(3, 7))
        counts = 1 + random.poisson(random.gamma(1.0, 6.0, size=(sites, 1)) * np.array([[0.6, 0.4]]))
        if seed % 2:  # classes that sites lack
            counts *= random.integers(0, 2, size=counts.shape)
            counts[0] += 1
        best, division = best_deviation(counts, shares, training), divide_sites(counts, shares, training)
        assert (division is None) == np.isinf(best)
        assert division is None or division.deviation == pytest.approx(best, abs=1e-6)
        assert division is None or division.is_optimal


def test_the_deviation_is_worked_out_by_hand() -> None:
    """Sites of 4, 3, 2, 1 patients a class: halves 4 + 1 and 3 + 2 hold half of each class; shares are exact."""
    counts = np.array([[4, 4], [3, 3], [2, 2], [1, 1]])
    division = divide_sites(counts, (0.5, 0.5))
    assert division is not None
    assert division.deviation == 0.0
    assert division.part.tolist() == [0, 1, 1, 0]


def test_a_search_that_ends_at_its_limit_gives_the_best_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_division, "_least_deviation", lambda *_: 0.0)  # never reached: none is exact
    monkeypatch.setattr(site_division, "NODES", 1)
    monkeypatch.setattr(site_division, "FEWEST_NODES", 1)
    counts = np.random.default_rng(0).integers(1, 60, size=(24, 2))
    division = divide_sites(counts, [1 / 5] * 5)
    assert division is not None
    assert not division.is_optimal
    of_part = np.stack([counts[division.part == part].sum(axis=0) for part in range(5)])
    assert division.deviation == np.abs(of_part / counts.sum(axis=0) - 0.2).max() < 0.2
