"""Attention tables, pictures and localisation against places and areas worked by hand."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from milcore.evaluation.attention.localisation import localise
from milcore.evaluation.attention.maps import attention_table, half_mass, heat_layer, overlay, percentile, png


def table(coords, weight, size=100.0):
    return attention_table(np.array(coords), size, np.array(weight), np.ones(len(coords)))


def test_table_keeps_the_rows_of_the_store():
    rows = table([(0, 0), (300, 100)], [0.25, 0.75], 50.5).to_pylist()
    assert rows[1] == {"x": 300, "y": 100, "size": 50.5, "weight": 0.75, "percentile": 75.0, "tissue": 1.0}


def test_percentile_of_flat_attention_is_fifty():
    np.testing.assert_allclose(percentile(np.full(7, 1 / 7)), 50.0)
    np.testing.assert_allclose(percentile(np.array([0.1, 0.4, 0.2, 0.3])), [12.5, 87.5, 37.5, 62.5])


@pytest.mark.parametrize(
    ("weight", "expected"),
    [([1.0, 0.0, 0.0], 1), ([0.25] * 4, 2), ([0.2] * 5, 3), ([0.4, 0.3, 0.2, 0.1], 2), ([0.5, 0.5], 1), ([1.0], 1)],
)
def test_half_mass_counts_the_fewest_patches(weight, expected):
    assert half_mass(np.array(weight)) == expected


def test_a_known_patch_is_found_at_its_place_in_the_picture():
    """Slide 1000 x 500 px, thumbnail 100 x 50: the patch at (300, 200) of 100 px covers columns 30-39, rows 20-29."""
    layer = heat_layer((50, 100), (1000, 500), table([(0, 0), (300, 200)], [0.1, 0.9]))
    hottest = np.argwhere(layer[..., 3] == 255)
    assert hottest.min(axis=0).tolist() == [20, 30]
    assert hottest.max(axis=0).tolist() == [29, 39]
    assert layer[25, 35].tolist() == [253, 231, 37, 255]
    assert (layer[:20, 10:] == 0).all()
    assert layer[5, 5, 3] == round(30 + 225 / 9)


def test_neighbouring_patches_leave_no_gap_at_any_scale():
    coords = [(int(101.7 * i), 0) for i in range(9)]
    layer = heat_layer((3, 37), (916, 102), table(coords, [1 / 9] * 9, 101.7))
    assert (layer[..., 3] == 255).all()


def test_overlay_leaves_uncovered_pixels_alone():
    thumbnail = np.full((50, 100, 3), 200, np.uint8)
    layer = heat_layer((50, 100), (1000, 500), table([(300, 200)], [1.0]))
    picture = overlay(thumbnail, layer)
    assert picture[0, 0].tolist() == [200, 200, 200]
    assert picture[25, 35].tolist() == [round(60 + 0.7 * 253), round(60 + 0.7 * 231), round(60 + 0.7 * 37)]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)


def test_localisation_is_the_mean_over_bags_and_counts_what_it_leaves_out():
    localisation = localise(
        {
            "perfect": (np.array([0.7, 0.2, 0.1]), np.array([1, 0, 0])),
            "half": (np.array([0.4, 0.4, 0.2]), np.array([1, 0, -1])),
            "one class": (np.array([0.5, 0.5]), np.array([1, -1])),
            "bare": (np.array([0.5, 0.5]), None),
        }
    )
    assert localisation.auroc == pytest.approx(0.75)
    assert localisation.bags == {"perfect": 1.0, "half": 0.5}
    assert localisation.precision == {"perfect": 1.0, "half": 0.5}
    assert localisation.left_out == {
        "one class": "annotation leaves one class of patches only",
        "bare": "no annotation",
    }
    assert math.isnan(localise({}).auroc)
