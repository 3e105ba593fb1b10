"""A bank of painted cell nuclei, by kind, direction and variant.

Concentrations are stored as bytes in steps of ``CONCENTRATION``. A lesion's nuclei are larger, irregular and coarse,
yet their mean concentration is that of benign ones, so an equal area of either absorbs nearly equal light.

Axis words: row, column, kind, direction, variant.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

CONCENTRATION = 2.5 / 255
DIRECTIONS = 16
VARIANTS = 8
RED_DENSITY = 0.6


@dataclass(frozen=True)
class NucleusShape:
    """Shape and texture of one kind of nucleus.

    Args:
        size: diameter (of the circle of equal area) relative to the slide's benign nuclei.
        spread: standard deviation of the logarithm of the diameter.
        aspect: short axis over long axis.
        darkness: mean concentration relative to the slide's.
        clumps: amplitude of chromatin clumps relative to the mean concentration.
        grain: size of a clump relative to the diameter.
        rim: how much darker the outline is.
        wobble: irregularity of the outline.
    """

    size: float
    spread: float
    aspect: float
    darkness: float
    clumps: float
    grain: float
    rim: float
    wobble: float


KINDS: Final = {
    "oval": NucleusShape(1.0, 0.10, 0.72, 1.0, 0.15, 0.08, 0.10, 0.04),
    "spindle": NucleusShape(0.95, 0.12, 0.36, 1.0, 0.12, 0.08, 0.05, 0.04),
    "round": NucleusShape(0.80, 0.05, 0.93, 1.15, 0.20, 0.12, 0.05, 0.03),
    "giant": NucleusShape(1.9, 0.10, 0.80, 1.0, 0.30, 0.09, 0.20, 0.04),
    "lesion": NucleusShape(2.7, 0.16, 0.74, 1.0, 0.65, 0.09, 0.45, 0.05),
}
KIND_CODES: Final = {name: code for code, name in enumerate(KINDS)}


@dataclass(frozen=True)
class NuclearStyle:
    """Properties common to the nuclei of a slide.

    Args:
        diameter: of its benign nuclei, px.
        darkness: mean concentration inside a nucleus.
        blur: standard deviation of the optical blur, px.
    """

    diameter: float
    darkness: float
    blur: float


@dataclass(frozen=True)
class NucleusBank:
    """Sprites of one slide, and the light that each absorbs.

    Args:
        sprites: ``sprites[kind][direction][variant]``, a square of concentrations with an odd edge.
        absorbed: sum over the sprite of the share of red light absorbed, in px.
    """

    sprites: list[list[list[UInt8[np.ndarray, "row column"]]]]
    absorbed: Float[np.ndarray, "kind direction variant"]


def nucleus_bank(rng: np.random.Generator, style: NuclearStyle) -> NucleusBank:
    """Paint the nuclei of a slide: every kind, direction and variant."""
    sprites = [
        [
            [paint_nucleus(rng, shape, np.pi * step / DIRECTIONS, style) for _ in range(VARIANTS)]
            for step in range(DIRECTIONS)
        ]
        for shape in KINDS.values()
    ]
    absorbed = [[[absorbed_light(sprite) for sprite in row] for row in kind] for kind in sprites]
    return NucleusBank(sprites, np.array(absorbed))


def absorbed_light(sprite: UInt8[np.ndarray, "row column"]) -> float:
    """Red light absorbed by a sprite, px: sum of ``1 - exp(-RED_DENSITY c)``."""
    return float(np.sum(1.0 - np.exp(-RED_DENSITY * CONCENTRATION * sprite)))


def paint_nucleus(
    rng: np.random.Generator, shape: NucleusShape, angle: float, style: NuclearStyle
) -> UInt8[np.ndarray, "row column"]:
    """Paint one nucleus: an irregular ellipse with rim and chromatin.

    The mean concentration inside is the product of the kind's and the slide's darkness.

    Args:
        rng: draws size, outline and chromatin.
        shape: the kind.
        angle: of the long axis, radians.
        style: of the slide.
    """
    size = style.diameter * shape.size * np.exp(rng.normal(0, shape.spread))
    long, short = size / 2 / np.sqrt(shape.aspect), size / 2 * np.sqrt(shape.aspect)
    half = int(np.ceil(long * (1 + 2 * shape.wobble) + 2 * style.blur)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.hypot(along / long, across / short) * _outline(rng, np.arctan2(y, x), shape.wobble)
    inside = np.clip((1 - radius) * short + 0.5, 0, 1)
    grain = ndimage.gaussian_filter(rng.standard_normal(x.shape), size * shape.grain)
    chromatin = 1 + shape.clumps * grain / grain.std() + shape.rim * np.clip((radius - 0.6) / 0.3, 0, 1)
    painted = inside * np.clip(chromatin, 0.15, None)
    painted *= style.darkness * shape.darkness * inside.sum() / painted.sum()
    blurred: Float[np.ndarray, "row column"] = ndimage.gaussian_filter(painted, style.blur)
    return np.clip(blurred / CONCENTRATION + 0.5, 0, 255).astype(np.uint8)


def _outline(
    rng: np.random.Generator, around: Float[np.ndarray, "row column"], wobble: float
) -> Float[np.ndarray, "row column"]:
    phases = rng.uniform(0, 2 * np.pi, 3)
    waves = [rng.normal() * np.cos((2 + k) * around + phase) for k, phase in enumerate(phases)]
    return np.asarray(1 + wobble * np.sum(waves, axis=0))
