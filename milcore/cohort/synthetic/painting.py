"""Painter of one synthetic H&E slide from a random generator.

Two maps of stain concentration are painted, haematoxylin (nuclei, stamped from a bank of sprites) and eosin (fibres),
and turned into light by the law of Beer and Lambert, strip by strip. Everything but the lesions (stain,
nuclear size and density, fibres, glands, blur, pen, fold) is the same with and without them.

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
    Map,
    Nuclei,
    SlideStyle,
    TissueLayout,
    draw_layout,
    draw_style,
    sample,
    standardised,
)
from milcore.cohort.synthetic.lesions import outlines, place_lesions, replace_nuclei
from milcore.cohort.synthetic.nuclei import CONCENTRATION, NuclearStyle, NucleusBank, nucleus_bank

STRIP = 256


@dataclass(frozen=True)
class Painting:
    """Level-0 pixels of a slide, and its lesions' outlines in level-0 px."""

    pixels: UInt8[np.ndarray, "row column rgb"]
    lesions: tuple[Polygon, ...]


def paint_slide(rng: np.random.Generator, size: tuple[int, int], hue_shift: float, lesion_share: float) -> Painting:
    """Paint a slide.

    Args:
        rng: its children draw the slide; lesions have their own, so all else is the same with and without them.
        size: (width, height) in px, multiples of ``STRIP``; one px is taken as 0.5 um.
        hue_shift: of eosin, by the laboratory.
        lesion_share: share of the tissue's area that becomes lesion; 0 for a benign slide.
    """
    for_style, for_bank, for_layout, for_textures, for_lesions = rng.spawn(5)
    style = draw_style(for_style, hue_shift)
    bank = nucleus_bank(for_bank, NuclearStyle(style.nucleus, style.darkness, style.blur))
    layout, nuclei = draw_layout(for_layout, style, size)
    textures = [fibre_texture(for_textures, edge, style.blur) for edge in (1024, 768)]
    lesion = place_lesions(for_lesions, layout.depth, lesion_share)
    nuclei = replace_nuclei(for_lesions, nuclei, sample(lesion, nuclei.places, COARSE), bank)
    return Painting(render(style, layout, textures, stamp(nuclei, bank, size)), outlines(lesion))


def stamp(nuclei: Nuclei, bank: NucleusBank, size: tuple[int, int]) -> UInt8[np.ndarray, "row column"]:
    """The haematoxylin map: each nucleus's sprite, the darker where two overlap."""
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
    """Periodic texture of wavy fibres, ``edge`` px square.

    Mean 0 and standard deviation 1.
    """
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
    """Transfer function of a Gaussian blur of ``sigma`` px.

    Args:
        squared: squared frequencies, 1 / px^2.
        sigma: px.
    """
    return np.asarray(np.exp(-2 * (np.pi * sigma) ** 2 * squared))


def periodic_noise(rng: np.random.Generator, edge: int, spectrum: np.ndarray) -> Map:
    """Noise with an amplitude spectrum, periodic in ``edge`` px.

    Mean 0 and standard deviation 1.
    """
    white = rng.standard_normal((edge, edge), np.float32)
    return standardised(fft.irfft2(fft.rfft2(white) * spectrum.astype(np.float32)))


def render(
    style: SlideStyle,
    layout: TissueLayout,
    textures: list[Map],
    haematoxylin: UInt8[np.ndarray, "row column"],
) -> UInt8[np.ndarray, "row column rgb"]:
    """Pixels from stain concentrations by the law of Beer and Lambert.

    ``paper * exp(-(h H + e E))``, times the pen's transmission, strip by strip.
    """
    light = light_table(style)
    pixels = np.empty((*haematoxylin.shape, 3), np.uint8)
    for top in range(0, len(pixels), STRIP):
        rows = slice(top, top + STRIP)
        h, e = strip_concentrations(style, layout, textures, haematoxylin[rows], top)
        np.take(light, (h.astype(np.uint16) << 8) | e, axis=0, out=pixels[rows])
        ink = enlarge(layout.pen, FINE, top, haematoxylin.shape[1])
        if ink.any():
            pixels[rows] = pixels[rows] * (1 - ink[..., None] / np.float32(255) * (1 - style.pen).astype(np.float32))
    return pixels


def light_table(style: SlideStyle) -> UInt8[np.ndarray, "pair rgb"]:
    """RGB of each pair of stored concentrations, at index ``256 h + e``."""
    steps = np.arange(256) * CONCENTRATION
    density = steps[:, None, None] * style.stains[0] + steps[None, :, None] * style.stains[1]
    return np.asarray(np.rint(style.paper * np.exp(-density)), np.uint8).reshape(-1, 3)


def strip_concentrations(
    style: SlideStyle,
    layout: TissueLayout,
    textures: list[Map],
    haematoxylin: UInt8[np.ndarray, "row column"],
    top: int,
) -> tuple[UInt8[np.ndarray, "row column"], UInt8[np.ndarray, "row column"]]:
    """Stored haematoxylin and eosin in the strip that begins at row ``top``."""
    width = haematoxylin.shape[1]
    weave = enlarge(Image.fromarray(layout.weave), COARSE, top, width)
    first, second = (tiled(texture, top, width) for texture in textures)
    fibres = second + weave * (first - second)
    covered = np.clip(enlarge(Image.fromarray(layout.depth), COARSE, top, width) / 6 + fibres + 0.5, 0, 1)
    covered *= np.clip(4 * fibres + 11, 0, 1)
    hollow = enlarge(layout.lumens, FINE, top, width) * np.float32(1 / 255)
    inner = enlarge(layout.epithelium, FINE, top, width) * np.float32(1 / 255)
    eosin = covered * (1 - hollow) * (1 + style.fibre * fibres * (1 - 0.6 * inner)) * (style.eosin / CONCENTRATION)
    thick = 1 + enlarge(Image.fromarray(layout.fold), COARSE, top, width)
    cytoplasm = 0.10 / CONCENTRATION * inner * (1 - hollow)
    return as_bytes((haematoxylin + cytoplasm) * thick), as_bytes(eosin * thick)


def as_bytes(values: Map) -> UInt8[np.ndarray, "row column"]:
    """Rounded and clipped to 0..255."""
    return np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)


def tiled(texture: Map, top: int, width: int) -> Map:
    """The strip at row ``top`` of a plane tiled with a periodic texture."""
    rows = np.arange(top, top + STRIP) % texture.shape[0]
    return np.tile(texture[rows], (1, -(-width // texture.shape[1])))[:, :width]


def enlarge(values: Image.Image, scale: int, top: int, width: int) -> np.ndarray:
    """The strip at row ``top`` of a map enlarged ``scale`` times."""
    region = (0, top / scale, values.width, (top + STRIP) / scale)
    return np.asarray(values.resize((width, STRIP), Image.Resampling.BILINEAR, box=region))
