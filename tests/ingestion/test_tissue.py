"""The tissue mask on painted squares and on real thumbnails with pen marks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milcore.ingestion.tissue import otsu, tissue_mask

WHITE, EOSIN, HAEMATOXYLIN = (243, 242, 244), (225, 150, 190), (120, 80, 150)


def _square(colour: tuple[int, int, int], noise: int = 0) -> np.ndarray:
    """60 x 60 white with a 20 x 20 square at (20, 20)."""
    picture = np.full((60, 60, 3), WHITE, np.int64)
    picture[20:40, 20:40] = colour
    picture += np.random.default_rng(0).integers(-noise, noise + 1, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("colour", [EOSIN, HAEMATOXYLIN])
@pytest.mark.parametrize("noise", [0, 3])
def test_stained_tissue_is_found(colour: tuple[int, int, int], noise: int) -> None:
    mask = tissue_mask(_square(colour, noise))
    assert mask[21:39, 21:39].all()
    assert mask.sum() <= 22 * 22


@pytest.mark.parametrize(
    "pen", [(30, 160, 120), (40, 90, 200), (60, 40, 220), (215, 20, 25), (15, 15, 20), (130, 130, 130)]
)
def test_pen_marks_and_grey_are_not_tissue(pen: tuple[int, int, int]) -> None:
    assert tissue_mask(_square(pen)).sum() == 0


@pytest.mark.parametrize("noise", [0, 4])
def test_an_empty_slide_has_no_tissue(noise: int) -> None:
    assert not tissue_mask(_square(WHITE, noise)).any()


def test_a_slide_that_is_all_tissue_is_all_tissue() -> None:
    picture = np.full((60, 60, 3), EOSIN, np.uint8)
    picture[:30] = HAEMATOXYLIN
    assert tissue_mask(picture).all()


def test_otsu_separates_two_heaps() -> None:
    """Heaps at 0.1 and 0.8: any threshold between is best, the lowest is taken (the bin above 0.1 ends at 26/256)."""
    assert otsu(np.array([0.1] * 30 + [0.8] * 10, np.float32)) == pytest.approx(26 / 256)


def _thumbnail(shared_data: Path, name: str) -> np.ndarray:
    image = Image.open(shared_data / "images/tissue" / f"{name}.png").convert("RGB")
    image.thumbnail((128, 128), Image.Resampling.BOX)
    return np.asarray(image)


@pytest.mark.parametrize("name", ["almost-white-1", "no-tissue", "no-tissue2", "no-tissue-line", "no-tissue-green-pen"])
def test_real_places_without_tissue_have_next_to_none(shared_data: Path, name: str) -> None:
    assert tissue_mask(_thumbnail(shared_data, name)).mean() < 0.05


def test_the_blurred_rim_of_ink_is_not_tissue_while_tissue_of_its_colour_is() -> None:
    """A red stroke of 8 px fading over 6 px on either side, and the colour of its rim as a patch of its own."""
    picture = np.full((80, 80, 3), WHITE, float)
    ink, away = np.array((215, 20, 25)), np.abs(np.arange(80) - 20)
    strength = np.clip(1 - (away - 4) / 6, 0, 1)[:, None, None]
    picture = picture * (1 - strength) + ink * strength
    picture[55:75, 20:60] = (235, 190, 195)
    mask = tissue_mask(picture.astype(np.uint8))
    assert not mask[:40].any()
    assert mask[56:74, 21:59].all()


def test_most_of_a_red_stroke_out_of_focus_is_left_out(shared_data: Path) -> None:
    """It fades through every red there is; without growing from the strong ink half of it would pass."""
    assert tissue_mask(_thumbnail(shared_data, "no-tissue-red-pen")).mean() < 0.25


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("very-low-nuclei-score-level0", 0.95, 1.0),
        ("tcga-lung-rgb", 0.6, 0.95),
        ("tcga-green-pen", 0.6, 0.9),
        ("tcga-red-pen", 0.5, 0.8),
        ("wsi-blue-pen", 0.15, 0.4),
    ],
)
def test_real_tissue_is_found_beside_pen_marks(shared_data: Path, name: str, low: float, high: float) -> None:
    assert low <= tissue_mask(_thumbnail(shared_data, name)).mean() <= high
