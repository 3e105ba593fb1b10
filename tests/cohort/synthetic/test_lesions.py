"""Lesions: their share, their outlines, and the light their nuclei take."""

import numpy as np
import pytest
from shapely import box

from milcore.cohort.synthetic.anatomy import COARSE, Nuclei, tissue_depth
from milcore.cohort.synthetic.lesions import outlines, place_lesions, replace_nuclei, spread_order
from milcore.cohort.synthetic.nuclei import DIRECTIONS, KIND_CODES, VARIANTS, NuclearStyle, nucleus_bank

STYLE = NuclearStyle(diameter=12.0, darkness=1.0, blur=0.5)


def test_lesions_cover_the_asked_share_of_the_tissue_and_lie_in_it() -> None:
    depth = tissue_depth(np.random.default_rng(1), (192, 256), 0.6)
    for seed in range(5):
        lesion = place_lesions(np.random.default_rng(seed), depth, 0.04)
        assert np.all(depth[lesion] > 0)
        assert lesion.sum() / np.sum(depth > 0) == pytest.approx(0.04, rel=0.15)


def test_an_outline_lies_where_the_map_says_in_level_0_px() -> None:
    lesion = np.zeros((20, 30), bool)
    lesion[5:10, 12:20] = True
    (outline,) = outlines(lesion)
    expected = box(12 * COARSE, 5 * COARSE, 20 * COARSE, 10 * COARSE)
    assert outline.symmetric_difference(expected).area < 0.02 * expected.area


def test_places_far_from_all_before_them_come_first() -> None:
    places = np.array([[0.0, 0.0], [1.0, 0.0], [100.0, 0.0], [101.0, 0.0]])
    order = spread_order(np.random.default_rng(0), places, 10.0)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert {place // 2 for place in order[:2].tolist()} == {0, 1}


def test_lesion_nuclei_absorb_the_light_of_those_they_replace() -> None:
    rng = np.random.default_rng(0)
    bank = nucleus_bank(rng, STYLE)
    count = 800
    codes = rng.integers(DIRECTIONS, size=count), rng.integers(VARIANTS, size=count)
    nuclei = Nuclei(rng.uniform(64, 960, (count, 2)), np.full(count, KIND_CODES["oval"]), *codes)
    inside = nuclei.places[:, 0] < 512
    after = replace_nuclei(rng, nuclei, inside, bank)
    grown = after.take(after.kinds == KIND_CODES["lesion"])
    before = bank.absorbed[nuclei.kinds, nuclei.directions, nuclei.variants][inside].sum()
    now = bank.absorbed[grown.kinds, grown.directions, grown.variants].sum()
    assert now == pytest.approx(before, abs=bank.absorbed[KIND_CODES["lesion"]].max())
    assert len(grown.places) < inside.sum() / 4
    assert len(after.places) - len(grown.places) == np.sum(~inside)
