"""Augmented patches: orientations, stains, and that neither chunk nor batch changes them."""

import numpy as np
import pytest
import torch

from milcore.mil.augmentation import STAINS, augment, orient, stain
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.dropout import Dropout

CPU = torch.device("cpu")
PATCH = torch.arange(12, dtype=torch.uint8).reshape(1, 2, 2, 3)


def patches(count: int, edge: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, edge, edge, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("orientation", "pixels"),
    [(0, [[0, 3], [6, 9]]), (1, [[6, 9], [0, 3]]), (2, [[3, 0], [9, 6]]), (4, [[0, 6], [3, 9]]), (7, [[9, 3], [6, 0]])],
)
def test_an_orientation_moves_pixels_as_worked_by_hand(orientation: int, pixels: list[list[int]]) -> None:
    turned = orient(PATCH, torch.tensor([orientation]))
    assert turned[0, :, :, 0].tolist() == pixels


def test_the_eight_orientations_are_the_symmetries_of_the_square() -> None:
    turned = orient(PATCH.expand(8, -1, -1, -1), torch.arange(8))
    assert len({tuple(patch.flatten().tolist()) for patch in turned}) == 8


def test_a_patch_that_is_not_square_keeps_its_shape() -> None:
    assert orient(torch.zeros(8, 2, 3, 3, dtype=torch.uint8), torch.arange(8)).shape == (8, 2, 3, 3)


def test_unchanged_amounts_leave_patches_as_they_are() -> None:
    mine = patches(5)
    torch.testing.assert_close(stain(mine, torch.ones(5, 2)), mine.float(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("dye", [0, 1])
def test_twice_a_dye_is_twice_its_optical_density(dye: int) -> None:
    """A pixel of one dye alone, of density d: v + 1 = 256 exp(-d s) with s the dye's unit vector."""
    unit = np.array(STAINS[dye]) / np.linalg.norm(STAINS[dye])
    pixel = torch.tensor(np.rint(256 * np.exp(-0.5 * unit) - 1), dtype=torch.uint8).reshape(1, 1, 1, 3)
    amount = torch.ones(1, 2)
    amount[0, dye] = 2.0
    # the stored pixel is rounded: half a grey level of 256 is 0.002 of density, doubled, times at most 256
    np.testing.assert_allclose(stain(pixel, amount).flatten(), 256 * np.exp(-1.0 * unit) - 1, atol=1.6)


def test_chunks_and_batches_do_not_change_what_an_instance_becomes() -> None:
    bags = [Bag("a", "a", 0, patches(7)), Bag("b", "b", 1, patches(4))]
    randomness = Dropout(3, 5, 0.25)
    together = pack(bags, [10, 11])
    whole = augment(together.chunk(0, 11, CPU), randomness)
    parts = [augment(together.chunk(start, min(start + 3, 11), CPU), randomness) for start in range(0, 11, 3)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(augment(pack(bags[1:], [11]).chunk(0, 4, CPU), randomness), whole[7:])


def test_epochs_and_seeds_change_it() -> None:
    chunk = pack([Bag("a", "a", 0, patches(7))], [0]).chunk(0, 7, CPU)
    once, again, other = (augment(chunk, Dropout(seed, epoch, 0.0)) for seed, epoch in ((0, 0), (0, 1), (1, 0)))
    assert not torch.equal(once, again)
    assert not torch.equal(once, other)


def test_a_bag_is_stained_as_a_whole_and_its_patches_turned_one_by_one() -> None:
    same = patches(1).expand(64, -1, -1, -1)
    made = augment(
        pack([Bag("a", "a", 0, same), Bag("b", "b", 0, same)], [0, 1]).chunk(0, 128, CPU), Dropout(0, 0, 0.0)
    )
    colour = made.flatten(1, 2).mean(dim=1)
    torch.testing.assert_close(colour[:64], colour[:1].expand(64, -1))
    assert (colour[0] - colour[64]).abs().max() > 0.5
    assert len({tuple(patch.flatten().tolist()) for patch in made[:64]}) == 8
