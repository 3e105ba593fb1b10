"""Area resampling: means worked by hand, and a slow formula over sub-pixels."""

import numpy as np
import pytest

from milcore.slides.resample import area_resize


def _grey(rows: list[list[int]]) -> np.ndarray:
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=2)


def test_halving_averages_two_by_two() -> None:
    picture = _grey([[0, 4, 100, 100], [8, 12, 100, 104]])
    assert area_resize(picture, (0, 0, 4, 2), (2, 1))[..., 0].tolist() == [[6, 101]]


def test_pixels_cut_by_an_edge_count_by_their_share() -> None:
    """Three px into two: (90 + 30 / 2) / 1.5 = 70 and (30 / 2 + 0) / 1.5 = 10."""
    assert area_resize(_grey([[90, 30, 0]]), (0, 0, 3, 1), (2, 1))[..., 0].tolist() == [[70, 10]]


def test_a_fractional_box_takes_its_part() -> None:
    """[0.25, 1.25) of (100, 20): 0.75 * 100 + 0.25 * 20 = 80."""
    assert area_resize(_grey([[100, 20]]), (0.25, 0, 1.25, 1), (1, 1))[..., 0].tolist() == [[80]]


def test_the_same_size_changes_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(area_resize(noise, (0, 0, 5, 7), (5, 7)), noise)


@pytest.mark.parametrize(
    ("box", "size"), [((0, 0, 12, 9), (8, 3)), ((0.5, 1.25, 11.75, 8.75), (5, 4)), ((2, 0, 7, 9), (5, 2))]
)
def test_it_equals_the_mean_over_a_fine_grid(box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    """60 sub-pixels a px: their nearest-px mean over each cell comes within rounding of the area mean."""
    noise = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    (left, top, right, bottom), (width, height) = box, size
    x = left + (np.arange(width * 240) + 0.5) * (right - left) / (width * 240)
    y = top + (np.arange(height * 240) + 0.5) * (bottom - top) / (height * 240)
    fine = noise[y.astype(int)][:, x.astype(int)].astype(float)
    slow = fine.reshape(height, 240, width, 240, 3).mean(axis=(1, 3))
    assert np.abs(area_resize(noise, box, size) - slow).max() <= 1.0


def test_shrinking_eightfold_averages_eight_by_eight() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    slow = noise.reshape(5, 8, 8, 8, 3).mean(axis=(1, 3))
    assert np.abs(area_resize(noise, (0, 0, 64, 40), (8, 5)) - slow).max() <= 1.0


def test_shrinking_far_by_no_integer_keeps_a_ramp() -> None:
    """Column x holds 2 x; parts of 101 / 9 px: the mean of part j is 2 (j + 0.5) 101 / 9 - 1."""
    ramp = np.repeat(np.tile(2 * np.arange(101), (73, 1))[..., None], 3, axis=2).astype(np.uint8)
    expected = 2 * (np.arange(9) + 0.5) * 101 / 9 - 1
    assert np.abs(area_resize(ramp, (0, 0, 101, 73), (9, 7))[3, :, 0] - expected).max() <= 1.1
