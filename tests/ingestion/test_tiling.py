"""Tile plans worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milcore.config import IngestConfig
from milcore.ingestion.tiling import plan_tiles, tile_size_level0

FULL = np.ones((50, 70), bool)


@pytest.mark.parametrize(
    ("mpp", "expected"),
    [(0.5, 256.0), (0.499, 256.0), (0.5024, 256.0), (0.25, 512.0), (0.325, 393.84615), (0.49, 261.22449)],
)
def test_tile_edge_in_level0_px(mpp: float, expected: float) -> None:
    """256 * 0.5 / mpp, except within 0.5 % of 0.5 um/px."""
    assert tile_size_level0(mpp, IngestConfig()) == pytest.approx(expected)


def test_a_full_mask_plans_every_whole_tile_row_by_row() -> None:
    plan = plan_tiles((700, 530), 0.5, FULL, IngestConfig())
    assert plan.coords.tolist() == [[0, 0], [256, 0], [0, 256], [256, 256]]
    assert plan.coords.dtype == np.int32
    assert plan.tissue.tolist() == [1.0] * 4
    assert (plan.patch_size_level0, plan.grid) == (256.0, 4)


def test_corners_of_a_fractional_grid_are_rounded_down() -> None:
    """Step 100 * 0.5 / 0.3 = 166.67: corners 0, 166, 333."""
    plan = plan_tiles((501, 170), 0.3, FULL, IngestConfig(patch_size=100))
    assert plan.coords.tolist() == [[0, 0], [166, 0], [333, 0]]


def test_tiles_are_chosen_by_their_share_of_tissue() -> None:
    """Mask px of 50 level-0 px, tiles of 100 px: shares 1, 1/4, 0 in a row."""
    mask = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], bool)
    config = IngestConfig(patch_size=100, min_tissue=0.25)
    plan = plan_tiles((300, 100), 0.5, mask, config)
    assert plan.coords.tolist() == [[0, 0], [100, 0]]
    assert plan.tissue.tolist() == [1.0, 0.25]
    strict = plan_tiles((300, 100), 0.5, mask, config.model_copy(update={"min_tissue": 0.26}))
    assert strict.coords.tolist() == [[0, 0]]


def test_mask_pixels_cut_by_a_tile_count_by_their_share() -> None:
    """Of a mask of 3 px over two tiles only the middle one is tissue: each tile holds a half: a third of its area."""
    plan = plan_tiles((200, 100), 0.5, np.array([[0, 1, 0]], bool), IngestConfig(patch_size=100, min_tissue=0.1))
    assert plan.tissue.tolist() == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.parametrize("size", [(255, 4000), (4000, 255), (10, 10)])
def test_a_slide_smaller_than_a_tile_has_no_grid(size: tuple[int, int]) -> None:
    plan = plan_tiles(size, 0.5, FULL, IngestConfig())
    assert (plan.grid, plan.coords.shape, plan.tissue.shape) == (0, (0, 2), (0,))


def test_a_stride_of_half_a_patch_overlaps_patches_by_half() -> None:
    """(300 - 100) / 50 + 1 = 5 columns; with 70 px the last begins at 140: 3. Tissue is the left 150 px."""
    mask = np.array([[1, 0]], bool)
    config = IngestConfig(patch_size=100, stride=50, min_tissue=0.5)
    plan = plan_tiles((300, 100), 0.5, mask, config)
    assert (plan.patch_size_level0, plan.grid) == (100.0, 5)
    assert plan.coords.tolist() == [[0, 0], [50, 0], [100, 0]]
    assert plan.tissue.tolist() == pytest.approx([1.0, 1.0, 0.5])
    assert plan_tiles((300, 100), 0.5, mask, config.model_copy(update={"stride": 70})).grid == 3


def test_a_stride_is_px_at_the_target_scale() -> None:
    """At 0.25 um/px a patch of 100 px at 0.5 spans 200 level-0 px and a stride of 150 spans 300."""
    plan = plan_tiles((1000, 200), 0.25, FULL, IngestConfig(patch_size=100, stride=150))
    assert plan.coords.tolist() == [[0, 0], [300, 0], [600, 0]]


def test_a_padded_border_covers_the_slide_to_its_last_px() -> None:
    """250 x 120 px in tiles of 100: 3 x 2; of the last column a half is slide, of the lower row a fifth."""
    config = IngestConfig(patch_size=100, min_tissue=0.0, border="pad")
    plan = plan_tiles((250, 120), 0.5, FULL, config)
    assert plan.coords.tolist() == [[0, 0], [100, 0], [200, 0], [0, 100], [100, 100], [200, 100]]
    assert plan.tissue.tolist() == pytest.approx([1.0, 1.0, 0.5, 0.2, 0.2, 0.1])
    assert plan_tiles((200, 100), 0.5, FULL, config).grid == 2
    assert plan_tiles((30, 20), 0.5, FULL, config).coords.tolist() == [[0, 0]]


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    mpp=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
    least=st.floats(0.0, 1.0),
)
def test_every_planned_tile_lies_inside_and_has_its_tissue(
    width: int, height: int, mpp: float, seed: int, least: float
) -> None:
    mask = np.random.default_rng(seed).random((13, 17)) < 0.5
    plan = plan_tiles((width, height), mpp, mask, IngestConfig(patch_size=64, min_tissue=least))
    assert len(plan.coords) <= plan.grid
    assert (plan.coords >= 0).all()
    assert (plan.coords + plan.patch_size_level0 <= np.array([width, height]) + 1e-6).all()
    assert (plan.tissue >= np.float32(least)).all()
    assert (plan.tissue <= 1.0).all()
