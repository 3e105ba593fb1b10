"""Painted nuclei: size, darkness and the light they take."""

import numpy as np
import pytest

from milcore.cohort.synthetic.nuclei import (
    CONCENTRATION,
    KIND_CODES,
    KINDS,
    RED_DENSITY,
    NuclearStyle,
    absorbed_light,
    nucleus_bank,
    paint_nucleus,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_nucleus_holds_its_area_times_the_asked_concentration(kind: str) -> None:
    shape = KINDS[kind]
    totals = [
        paint_nucleus(np.random.default_rng(k), shape, 0.3, NuclearStyle(14.0, 1.0, 0.5)).sum() * CONCENTRATION
        for k in range(200)
    ]
    # a lognormal diameter d exp(N(0, s)) has mean square d^2 exp(2 s^2)
    area = np.pi / 4 * (14.0 * shape.size) ** 2 * np.exp(2 * shape.spread**2)
    assert np.mean(totals) == pytest.approx(area * shape.darkness, rel=0.12)


def test_absorbed_light_of_one_px_is_beer_and_lambert() -> None:
    sprite = np.zeros((3, 3), np.uint8)
    sprite[1, 1] = 102  # concentration 1.0
    assert absorbed_light(sprite) == pytest.approx(1 - np.exp(-RED_DENSITY), rel=1e-9)


def test_lesion_nuclei_are_larger_and_absorb_as_much_light_for_their_area() -> None:
    bank = nucleus_bank(np.random.default_rng(0), NuclearStyle(diameter=12.0, darkness=1.1, blur=0.5))
    oval, lesion = bank.absorbed.mean(axis=(1, 2))[[KIND_CODES["oval"], KIND_CODES["lesion"]]]
    sizes = [np.mean([(np.array(s) > 0).sum() for row in kind for s in row]) for kind in bank.sprites]
    assert lesion > 4 * oval
    assert lesion / oval == pytest.approx(sizes[-1] / sizes[0], rel=0.35)


def test_every_sprite_has_an_odd_edge_so_it_has_a_middle() -> None:
    bank = nucleus_bank(np.random.default_rng(0), NuclearStyle(diameter=10.0, darkness=1.0, blur=0.4))
    assert all(s.shape[0] == s.shape[1] and s.shape[0] % 2 for kind in bank.sprites for row in kind for s in row)
