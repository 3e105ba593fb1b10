"""Painted slides: a lesion changes texture where it is and nothing elsewhere."""

import numpy as np
from shapely import contains_xy, union_all

from milcore.cohort.synthetic.anatomy import Nuclei, draw_style
from milcore.cohort.synthetic.nuclei import NuclearStyle, nucleus_bank
from milcore.cohort.synthetic.painting import light_table, paint_slide, stamp

SIZE = (2048, 1536)
STYLE = NuclearStyle(diameter=12.0, darkness=1.0, blur=0.5)


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
    style = draw_style(np.random.default_rng(0), 0.0)
    table = light_table(style)
    assert table[0].tolist() == [round(style.paper)] * 3
    density = 102 / 102 * style.stains[0] + 51 / 102 * style.stains[1]  # 2.5 / 255 = 1 / 102
    assert table[102 * 256 + 51].tolist() == np.rint(style.paper * np.exp(-density)).astype(int).tolist()


def test_two_overlapping_nuclei_leave_the_darker_px() -> None:
    bank = nucleus_bank(np.random.default_rng(0), STYLE)
    zeros = np.zeros(2, np.intp)
    both = stamp(Nuclei(np.array([[64.0, 64.0], [68.0, 64.0]]), zeros, zeros, np.arange(2)), bank, (128, 128))
    each = [
        stamp(Nuclei(np.array([place]), zeros[:1], zeros[:1], zeros[:1] + k), bank, (128, 128))
        for k, place in enumerate(([64.0, 64.0], [68.0, 64.0]))
    ]
    np.testing.assert_array_equal(both, np.maximum(*each))
