"""Stain normalisation after Macenko, from a slide's haematoxylin and eosin to reference stains.

By the law of Beer and Lambert the optical density of a px is a sum of stains, so the whole normalisation is one matrix
on optical densities, estimated once for a slide and stored with it. Pure, no I/O. Not for slides of other stains. Axis
words: n (px), h, w, s (stain: haematoxylin, eosin), c (red, green, blue).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from milcore.errors import SlideError

LIGHT = 240.0
FAINTEST = 0.15
ANGLE_PERCENTILE = 1.0
STRENGTH_PERCENTILE = 99.0
FEWEST_PX = 1_000
SMALLEST_ANGLE = 0.05
REFERENCE_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_STRENGTHS = np.array([1.9705, 1.0308])

Float = npt.NDArray[np.float64]


class Stains(NamedTuple):
    """Haematoxylin and eosin of a slide.

    Args:
        vectors: directions of optical density, shape (s, c).
        strengths: 99th percentile of each stain's amount, shape (s,).
    """

    vectors: Float
    strengths: Float

    def to_attrs(self) -> dict[str, Any]:
        """JSON attributes in the slide's group, rounded to six decimals."""
        return {
            "method": "macenko",
            "vectors": self.vectors.round(6).tolist(),
            "strengths": self.strengths.round(6).tolist(),
        }


def optical_density(pixels: npt.NDArray[np.uint8]) -> Float:
    """Optical density ``-ln((I + 1) / 240)``; the 1 keeps black finite."""
    return np.asarray(-np.log((pixels.astype(np.float64) + 1.0) / LIGHT))


def estimate_stains(pixels: npt.NDArray[np.uint8]) -> Stains:
    """Estimate the two stains of a slide from px of its tissue.

    They are the outermost directions of optical density in the plane of its two largest components: the 1st and 99th
    percentile of the angle in that plane, over px whose density is at least 0.15 in every colour. Strengths are the
    99th percentile of each stain's amount.

    Args:
        pixels: of the slide's tissue, shape (n, c).

    Raises:
        SlideError: too few px are stained, or all alike.

    Source: Macenko et al. 2009, section 2; the plane is that of the covariance, as in the authors' own code.
    """
    density = optical_density(pixels)
    density = density[(density >= FAINTEST).all(axis=1)]
    if len(density) < FEWEST_PX:
        raise SlideError(f"stains cannot be told: {len(density)} of {len(pixels)} px looked at are stained")
    plane = np.linalg.eigh(np.cov(density.T))[1][:, :0:-1]
    plane = plane * np.where(density.mean(axis=0) @ plane < 0.0, -1.0, 1.0)
    angles = np.arctan2(density @ plane[:, 1], density @ plane[:, 0])
    low, high = np.percentile(angles, [ANGLE_PERCENTILE, 100.0 - ANGLE_PERCENTILE])
    if high - low < SMALLEST_ANGLE:
        raise SlideError(f"stains cannot be told: only one is seen (within {np.degrees(high - low):.1f} degrees)")
    ends = np.array([[np.cos(low), np.sin(low)], [np.cos(high), np.sin(high)]]) @ plane.T
    vectors = ends[np.argsort(-ends[:, 0])]  # haematoxylin absorbs more red
    strengths = np.percentile(density @ np.linalg.pinv(vectors), STRENGTH_PERCENTILE, axis=0)
    if strengths.min() <= 0.0:
        raise SlideError("stains cannot be told: one has no strength")
    return Stains(vectors, strengths)


class Normaliser:
    """Stain normaliser of a slide: ``d' = d pinv(V) diag(reference / strength) R``.

    Intensity is ``240 exp(-d') - 1``, the inverse of ``optical_density``, so that a slide of the reference stains is
    unchanged (the authors leave out the 1).
    """

    def __init__(self, stains: Stains) -> None:
        amounts = np.linalg.pinv(stains.vectors) * (REFERENCE_STRENGTHS / stains.strengths)
        self._matrix = (amounts @ REFERENCE_STAINS).astype(np.float32)
        self._density = optical_density(np.arange(256, dtype=np.uint8)).astype(np.float32)

    def apply(self, patch: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Patch (h, w, c) in the reference stains."""
        density = self._density[patch] @ self._matrix
        intensity = LIGHT * np.exp(-density) - 1.0
        return np.asarray(np.rint(np.clip(intensity, 0.0, 255.0)).astype(np.uint8))
