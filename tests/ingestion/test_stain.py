"""Stain normalisation against its textbook steps, px by px, and against slides painted of known stains."""

import math

import numpy as np
import pytest

from milcore.errors import SlideError
from milcore.ingestion.stain import (
    REFERENCE_STAINS,
    REFERENCE_STRENGTHS,
    Normaliser,
    Stains,
    estimate_stains,
    optical_density,
)

# eosin that absorbs enough red for its pure px to count (0.15)
VECTORS = np.array([[0.6514, 0.7015, 0.2906], [0.3006, 0.9020, 0.3107]])


def _painted(vectors: np.ndarray, count: int = 4000, seed: int = 0) -> np.ndarray:
    """Pixels of random amounts of two stains, a twentieth of them of one stain alone, on either side."""
    generator = np.random.default_rng(seed)
    amounts = generator.uniform(0.3, 1.2, (count, 2))
    amounts[: count // 20, 0] = 0.0
    amounts[count // 20 : count // 10, 1] = 0.0
    intensity = 240.0 * np.exp(-amounts @ vectors) - 1.0
    return np.clip(np.rint(intensity), 0, 255).astype(np.uint8)


def test_painted_stains_are_estimated() -> None:
    stains = estimate_stains(_painted(VECTORS))
    cosines = np.minimum((stains.vectors * VECTORS).sum(axis=1), 1.0)
    assert np.degrees(np.arccos(cosines)).max() < 3.0
    assert np.linalg.norm(stains.vectors, axis=1) == pytest.approx([1.0, 1.0])
    assert stains.strengths == pytest.approx([1.2, 1.2], abs=0.1)


def _slowly(pixels: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """Macenko's steps one by one: singular vectors, a loop over px, least squares for each."""
    densities = [[-math.log((int(v) + 1) / 240) for v in px] for px in pixels]
    kept = np.array([px for px in densities if min(px) >= 0.15])
    _, _, directions = np.linalg.svd(kept - kept.mean(axis=0))
    first, second = (d if d @ kept.mean(axis=0) >= 0 else -d for d in directions[:2])
    angles = sorted(math.atan2(px @ second, px @ first) for px in kept)
    ends = [np.percentile(angles, 1), np.percentile(angles, 99)]
    stains = [math.cos(angle) * first + math.sin(angle) * second for angle in ends]
    stains.sort(key=lambda stain: -stain[0])
    amounts = np.array([np.linalg.lstsq(np.array(stains).T, px, rcond=None)[0] for px in kept])
    strengths = [np.percentile(amounts[:, k], 99) for k in range(2)]
    result = np.empty(patch.shape)
    for place in np.ndindex(patch.shape[:2]):
        density = [-math.log((int(v) + 1) / 240) for v in patch[place]]
        amount = np.linalg.lstsq(np.array(stains).T, density, rcond=None)[0]
        parts = [amount[k] / strengths[k] * REFERENCE_STRENGTHS[k] * REFERENCE_STAINS[k] for k in range(2)]
        result[place] = [min(255.0, max(0.0, 240 * math.exp(-d) - 1)) for d in sum(parts)]
    return result


def test_a_patch_is_what_the_textbook_makes_of_it() -> None:
    pixels = _painted(VECTORS)
    patch = np.random.default_rng(1).integers(0, 256, (12, 10, 3), np.uint8)
    fast = Normaliser(estimate_stains(pixels)).apply(patch)
    assert np.abs(fast - _slowly(pixels, patch)).max() <= 0.51


def test_reference_stains_come_out_as_they_went_in() -> None:
    patch = _painted(REFERENCE_STAINS).reshape(40, 100, 3)
    out = Normaliser(Stains(REFERENCE_STAINS, REFERENCE_STRENGTHS)).apply(patch)
    assert np.abs(out.astype(int) - patch).max() <= 1


def test_two_scanners_of_one_tissue_come_out_alike() -> None:
    """The same amounts in two pairs of stains: far apart before, near after."""
    other = np.array([[0.50, 0.72, 0.48], [0.35, 0.78, 0.52]])
    one, two = _painted(VECTORS), _painted(other)
    assert np.abs(one.astype(int) - two).mean() > 10
    out = [Normaliser(estimate_stains(pixels)).apply(pixels[None]).astype(int) for pixels in (one, two)]
    assert np.abs(out[0] - out[1]).mean() < 5


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((4000, 3), 240, np.uint8), "0 of 4000 px looked at are stained"),
        (np.repeat(np.arange(20, 180, dtype=np.uint8), 25)[:, None] * [1, 1, 1], "only one is seen"),
    ],
)
def test_a_slide_without_two_stains_is_refused(pixels: np.ndarray, reason: str) -> None:
    with pytest.raises(SlideError, match=reason):
        estimate_stains(pixels.astype(np.uint8))


def test_density_of_black_is_finite() -> None:
    """ln 240 = 5.4806 for black, -ln(256 / 240) = -0.0645 for white."""
    assert optical_density(np.array([0, 255], np.uint8)) == pytest.approx([5.4806, -0.0645], abs=1e-4)
