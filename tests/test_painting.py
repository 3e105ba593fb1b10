"""Painted slides: a lesion changes texture where it is and nothing elsewhere."""

import numpy as np
import pytest
from shapely import box, contains_xy, union_all

from milcore.nuclei import DIRECTIONS, KIND_CODES, VARIANTS, nucleus_bank
from milcore.painting import (
    COARSE,
    Nuclei,
    draw_look,
    light_table,
    outlines,
    paint_slide,
    place_lesions,
    replace_nuclei,
    spread_order,
    stamp,
    tissue_depth,
)

SIZE = (2048, 1536)


def painted(lesion_share: float):
    return paint_slide(np.random.default_rng(3), SIZE, 0.0, lesion_share)


def test_a_lesion_changes_no_px_away_from_it_and_little_of_the_mean_colour_in_it() -> None:
    benign, ill = painted(0.0), painted(0.06)
    assert benign.lesions == ()
    lesion = union_all(ill.lesions)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    away = ~contains_xy(lesion.buffer(48), x, y)
    np.testing.assert_array_equal(ill.pixels[away], benign.pixels[away])
    inside = contains_xy(lesion.buffer(24), x, y)
    difference = ill.pixels[inside].mean(0) - benign.pixels[inside].mean(0)
    np.testing.assert_allclose(difference, 0, atol=4)
    assert np.abs(ill.pixels[inside].astype(int) - benign.pixels[inside]).mean() > 4


def test_the_background_is_nearly_white_and_tissue_is_pink() -> None:
    pixels = painted(0.0).pixels
    assert pixels[:8].min() >= 230
    red, green, blue = np.median(pixels[SIZE[1] // 2 - 200 : SIZE[1] // 2 + 200].reshape(-1, 3), axis=0)
    assert red > blue > green


def test_light_follows_beer_and_lambert() -> None:
    look = draw_look(np.random.default_rng(0), 0.0)
    table = light_table(look)
    assert table[0].tolist() == [round(look.paper)] * 3
    density = 102 / 102 * look.stains[0] + 51 / 102 * look.stains[1]  # 2.5 / 255 = 1 / 102
    assert table[102 * 256 + 51].tolist() == np.rint(look.paper * np.exp(-density)).astype(int).tolist()


def test_tissue_covers_the_asked_share_and_keeps_off_the_border() -> None:
    depth = tissue_depth(np.random.default_rng(1), (192, 256), 0.6)
    assert np.mean(depth > 0) == pytest.approx(0.6, abs=0.02)
    assert max(depth[0].max(), depth[-1].max(), depth[:, 0].max(), depth[:, -1].max()) < 0


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
    bank = nucleus_bank(rng, 12.0, 1.0, 0.5)
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


def test_two_overlapping_nuclei_leave_the_darker_px() -> None:
    bank = nucleus_bank(np.random.default_rng(0), 12.0, 1.0, 0.5)
    zeros = np.zeros(2, np.intp)
    both = stamp(Nuclei(np.array([[64.0, 64.0], [68.0, 64.0]]), zeros, zeros, np.arange(2)), bank, (128, 128))
    each = [
        stamp(Nuclei(np.array([place]), zeros[:1], zeros[:1], zeros[:1] + k), bank, (128, 128))
        for k, place in enumerate(([64.0, 64.0], [68.0, 64.0]))
    ]
    np.testing.assert_array_equal(both, np.maximum(*each))
