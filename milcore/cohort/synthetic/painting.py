"""One synthetic H&E slide: what it looks like, drawn from a random generator and nothing else.

Two maps of stain concentration are painted, haematoxylin (nuclei, stamped from a bank of sprites) and eosin (fibres),
and turned into light by Beer and Lambert, strip by strip. Everything but the lesions (stain, nuclear size and density,
fibres, glands, blur, pen, fold) is the same with and without them.

Axis words: row, column, rgb.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import fft
from shapely import Polygon

from milcore.cohort.synthetic.anatomy import (
    COARSE,
    FINE,
    Ground,
    Look,
    Map,
    Nuclei,
    draw_look,
    lay_out,
    sample,
    standardised,
)
from milcore.cohort.synthetic.lesions import outlines, place_lesions, replace_nuclei
from milcore.cohort.synthetic.nuclei import CONCENTRATION, NuclearHabit, NucleusBank, nucleus_bank

STRIP = 256


@dataclass(frozen=True)
class Painting:
    """Level-0 px of a slide and the outlines of its lesions in level-0 px."""

    pixels: UInt8[np.ndarray, "row column rgb"]
    lesions: tuple[Polygon, ...]


def paint_slide(rng: np.random.Generator, size: tuple[int, int], hue_shift: float, lesion_share: float) -> Painting:
    """Paint a slide.

    Args:
        rng: its children draw the slide; lesions have their own, so all else is the same with and without them.
        size: (width, height) in px, multiples of ``STRIP``; one px is taken as 0.5 um.
        hue_shift: the laboratory's habit: eosin's hue moved by this much.
        lesion_share: share of the tissue's area that becomes lesion; 0 for a benign slide.
    """
    for_look, for_bank, for_layout, for_textures, for_lesions = rng.spawn(5)
    look = draw_look(for_look, hue_shift)
    bank = nucleus_bank(for_bank, NuclearHabit(look.nucleus, look.darkness, look.blur))
    ground, nuclei = lay_out(for_layout, look, size)
    textures = [fibre_texture(for_textures, edge, look.blur) for edge in (1024, 768)]
    lesion = place_lesions(for_lesions, ground.depth, lesion_share)
    nuclei = replace_nuclei(for_lesions, nuclei, sample(lesion, nuclei.places, COARSE), bank)
    return Painting(develop(look, ground, textures, stamp(nuclei, bank, size)), outlines(lesion))


def stamp(nuclei: Nuclei, bank: NucleusBank, size: tuple[int, int]) -> UInt8[np.ndarray, "row column"]:
    """The haematoxylin map: every nucleus's sprite, the darker one where two overlap."""
    canvas = np.zeros((size[1], size[0]), np.uint8)
    corners = np.rint(nuclei.places).astype(np.intp).tolist()
    for (x, y), kind, direction, variant in zip(
        corners, nuclei.kinds.tolist(), nuclei.directions.tolist(), nuclei.variants.tolist(), strict=True
    ):
        sprite = bank.sprites[kind][direction][variant]
        half = sprite.shape[0] // 2
        under = canvas[y - half : y + half + 1, x - half : x + half + 1]
        np.maximum(under, sprite, out=under)
    return canvas


def fibre_texture(rng: np.random.Generator, edge: int, blur: float) -> Map:
    """A periodic texture of wavy fibres, ``edge`` px square, mean 0 and standard deviation 1."""
    across, along = fft.fftfreq(edge)[:, None], fft.rfftfreq(edge)[None, :]
    long_waves = np.exp(-((across / 0.01) ** 2) - (along / 0.004) ** 2)
    fibres = np.exp(-((across / 0.12) ** 2) - (along / 0.012) ** 2) - long_waves
    grain = 0.012 * np.exp(-((across / 0.25) ** 2) - (along / 0.25) ** 2)
    squared = across**2 + along**2
    straight = periodic_noise(rng, edge, (fibres + grain) * gaussian_spectrum(squared, blur))
    shift = np.rint(18 * periodic_noise(rng, edge, gaussian_spectrum(squared, edge / 16))).astype(np.intp)
    row = (np.arange(edge)[:, None] + shift) % edge
    return standardised(straight[row, np.arange(edge)[None, :]])


def gaussian_spectrum(squared: np.ndarray, sigma: float) -> np.ndarray:
    """What a Gaussian blur of ``sigma`` px leaves of each squared frequency (per px, squared)."""
    return np.asarray(np.exp(-2 * (np.pi * sigma) ** 2 * squared))


def periodic_noise(rng: np.random.Generator, edge: int, spectrum: np.ndarray) -> Map:
    """Noise of an amplitude spectrum, periodic in ``edge`` px, mean 0 and standard deviation 1."""
    white = rng.standard_normal((edge, edge), np.float32)
    return standardised(fft.irfft2(fft.rfft2(white) * spectrum.astype(np.float32)))


def develop(
    look: Look,
    ground: Ground,
    textures: list[Map],
    haematoxylin: UInt8[np.ndarray, "row column"],
) -> UInt8[np.ndarray, "row column rgb"]:
    """Concentrations to light: ``paper * exp(-(h H + e E))``, times the pen's colour, strip by strip."""
    light = light_table(look)
    pixels = np.empty((*haematoxylin.shape, 3), np.uint8)
    for top in range(0, len(pixels), STRIP):
        rows = slice(top, top + STRIP)
        h, e = strip_concentrations(look, ground, textures, haematoxylin[rows], top)
        np.take(light, (h.astype(np.uint16) << 8) | e, axis=0, out=pixels[rows])
        ink = enlarge(ground.pen, FINE, top, haematoxylin.shape[1])
        if ink.any():
            pixels[rows] = pixels[rows] * (1 - ink[..., None] / np.float32(255) * (1 - look.pen).astype(np.float32))
    return pixels


def light_table(look: Look) -> UInt8[np.ndarray, "pair rgb"]:
    """RGB of every pair of stored concentrations, at index ``256 h + e``."""
    steps = np.arange(256) * CONCENTRATION
    density = steps[:, None, None] * look.stains[0] + steps[None, :, None] * look.stains[1]
    return np.asarray(np.rint(look.paper * np.exp(-density)), np.uint8).reshape(-1, 3)


def strip_concentrations(
    look: Look, ground: Ground, textures: list[Map], haematoxylin: UInt8[np.ndarray, "row column"], top: int
) -> tuple[UInt8[np.ndarray, "row column"], UInt8[np.ndarray, "row column"]]:
    """Stored concentrations of both stains in the strip that begins at row ``top``."""
    width = haematoxylin.shape[1]
    weave = enlarge(Image.fromarray(ground.weave), COARSE, top, width)
    first, second = (tiled(texture, top, width) for texture in textures)
    fibres = second + weave * (first - second)
    covered = np.clip(enlarge(Image.fromarray(ground.depth), COARSE, top, width) / 6 + fibres + 0.5, 0, 1)
    covered *= np.clip(4 * fibres + 11, 0, 1)
    hollow = enlarge(ground.lumens, FINE, top, width) * np.float32(1 / 255)
    inner = enlarge(ground.epithelium, FINE, top, width) * np.float32(1 / 255)
    eosin = covered * (1 - hollow) * (1 + look.fibre * fibres * (1 - 0.6 * inner)) * (look.eosin / CONCENTRATION)
    thick = 1 + enlarge(Image.fromarray(ground.fold), COARSE, top, width)
    cytoplasm = 0.10 / CONCENTRATION * inner * (1 - hollow)
    return as_bytes((haematoxylin + cytoplasm) * thick), as_bytes(eosin * thick)


def as_bytes(values: Map) -> UInt8[np.ndarray, "row column"]:
    """Rounded and clipped to 0..255."""
    return np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)


def tiled(texture: Map, top: int, width: int) -> Map:
    """The strip at row ``top`` of the plane covered with a periodic texture."""
    rows = np.arange(top, top + STRIP) % texture.shape[0]
    return np.tile(texture[rows], (1, -(-width // texture.shape[1])))[:, :width]


def enlarge(values: Image.Image, scale: int, top: int, width: int) -> np.ndarray:
    """The strip at row ``top`` of a map enlarged ``scale`` times."""
    region = (0, top / scale, values.width, (top + STRIP) / scale)
    return np.asarray(values.resize((width, STRIP), Image.Resampling.BILINEAR, box=region))
