"""Layout and style of a synthetic slide, independent of its label.

Tissue, glands, pen, fold and benign nuclei. Axis words: row, column, rgb, nucleus. Places are (x, y) in level-0 px; a
coarse map has one value per ``COARSE`` px, a fine one one per ``FINE`` px.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from milcore.cohort.synthetic.nuclei import DIRECTIONS, KIND_CODES, VARIANTS

COARSE = 16
FINE = 4
MARGIN = 64
HAEMATOXYLIN = (0.60, 0.71, 0.37)
EOSIN = (0.14, 0.86, 0.49)
PENS = ((0.10, 0.20, 0.65), (0.08, 0.45, 0.20), (0.12, 0.12, 0.14), (0.75, 0.10, 0.15))

Map = Float32[np.ndarray, "row column"]
Places = Float[np.ndarray, "nucleus 2"]
Codes = Int[np.ndarray, " nucleus"]


@dataclass(frozen=True)
class SlideStyle:
    """Properties that vary between slides independently of the label.

    Args:
        stains: optical density per unit of haematoxylin and of eosin.
        nucleus: mean diameter of a benign nucleus, px.
        nuclear_share: mean share of tissue area under nuclei.
        darkness: mean concentration inside a nucleus.
        eosin: mean concentration of the stroma.
        fibre: amplitude of the fibres relative to ``eosin``.
        giants: share of stromal nuclei that are large without a lesion (single ones, unlike a lesion's clusters).
        glands: share of places in glandular regions that hold a gland.
        blur: standard deviation of the optical blur, px.
        tissue_share: share of the slide that is tissue.
        paper: brightness of the empty background.
        pen: share of light that a pen stroke lets through.
    """

    stains: Float[np.ndarray, "stain rgb"]
    nucleus: float
    nuclear_share: float
    darkness: float
    eosin: float
    fibre: float
    giants: float
    glands: float
    blur: float
    tissue_share: float
    paper: float
    pen: Float[np.ndarray, " rgb"]


@dataclass(frozen=True)
class Nuclei:
    """Places (x, y), kinds, directions and variants of nuclei.

    A direction counts steps of half a turn over ``DIRECTIONS``.
    """

    places: Places
    kinds: Codes
    directions: Codes
    variants: Codes

    def take(self, index: Int[np.ndarray, " selection"] | Bool[np.ndarray, " nucleus"]) -> "Nuclei":
        """The nuclei at an index or mask."""
        return Nuclei(self.places[index], self.kinds[index], self.directions[index], self.variants[index])

    def concatenate(self, other: "Nuclei") -> "Nuclei":
        """These nuclei followed by others."""
        return Nuclei(
            np.concatenate([self.places, other.places]),
            np.concatenate([self.kinds, other.kinds]),
            np.concatenate([self.directions, other.directions]),
            np.concatenate([self.variants, other.variants]),
        )


@dataclass(frozen=True)
class TissueLayout:
    """Maps of tissue, glands, pen and fold of a slide.

    Args:
        depth: px to the tissue's edge, positive inside (coarse).
        crowding: logarithm of the local nuclear density relative to the slide's (coarse).
        weave: share of the first fibre texture, 0 to 1 (coarse).
        fold: extra thickness, 0 where the section lies flat (coarse).
        lumens: 255 in the lumen of a gland (fine).
        epithelium: 255 in a gland, its lumen included (fine).
        pen: 255 under a pen stroke (fine).
    """

    depth: Map
    crowding: Map
    weave: Map
    fold: Map
    lumens: Image.Image
    epithelium: Image.Image
    pen: Image.Image


def draw_style(rng: np.random.Generator, hue_shift: float) -> SlideStyle:
    """Draw the style of a slide.

    Args:
        rng: draws every property.
        hue_shift: of eosin, by the laboratory.
    """
    stains = np.array([HAEMATOXYLIN, EOSIN]) * rng.uniform(0.88, 1.12, (2, 3))
    stains[1, 2] *= 1 + hue_shift
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    return SlideStyle(
        stains=stains,
        nucleus=rng.uniform(10.0, 16.0),
        nuclear_share=rng.uniform(0.08, 0.15),
        darkness=rng.uniform(0.9, 1.4),
        eosin=rng.uniform(0.35, 0.62),
        fibre=rng.uniform(0.10, 0.26),
        giants=rng.uniform(0.0, 0.010),
        glands=rng.uniform(0.0, 0.8),
        blur=rng.uniform(0.4, 0.9),
        tissue_share=rng.uniform(0.50, 0.66),
        paper=rng.uniform(240.0, 249.0),
        pen=np.array(PENS[rng.integers(len(PENS))]),
    )


def draw_layout(rng: np.random.Generator, style: SlideStyle, size: tuple[int, int]) -> tuple[TissueLayout, Nuclei]:
    """Draw the maps of a slide and its benign nuclei."""
    shape = (size[1] // COARSE, size[0] // COARSE)
    depth = tissue_depth(rng, shape, style.tissue_share)
    lumens, epithelium, rings = glands(rng, style, depth, size)
    layout = TissueLayout(
        depth=depth,
        crowding=0.30 * smooth_noise(rng, shape, 14) + 0.15 * smooth_noise(rng, shape, 4),
        weave=np.clip(0.5 + 0.5 * smooth_noise(rng, shape, 20), 0, 1),
        fold=fold(rng, shape),
        lumens=lumens,
        epithelium=epithelium,
        pen=pen_strokes(rng, depth, size),
    )
    stroma = scatter(rng, style, layout, size)
    outside = sample(np.asarray(epithelium), stroma.places, FINE) == 0
    return layout, stroma.take(outside).concatenate(rings)


def standardised(values: np.ndarray) -> Map:
    """The values shifted and scaled to mean 0 and standard deviation 1."""
    return np.asarray((values - values.mean()) / values.std(), np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Map:
    """Gaussian noise smoothed over ``sigma`` map px, of mean 0 and standard deviation 1."""
    white = rng.standard_normal(shape).astype(np.float32)
    return standardised(ndimage.gaussian_filter(white, sigma, mode="wrap"))


def sample(values: np.ndarray, places: Places, scale: int) -> np.ndarray:
    """Values of a map, one per ``scale`` px, at each place."""
    column, row = (places // scale).astype(np.intp).T
    return np.asarray(values[row.clip(0, values.shape[0] - 1), column.clip(0, values.shape[1] - 1)])


def tissue_depth(rng: np.random.Generator, shape: tuple[int, int], share: float) -> Map:
    """Signed distance to the tissue's edge, px, positive inside.

    The tissue covers ``share`` of the slide and does not touch the slide's border.
    """
    row, column = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    centre = rng.uniform(-0.08, 0.08, 2)
    power = rng.uniform(2.0, 3.5)
    reach = (np.abs(row - centre[0]) ** power + np.abs(column - centre[1]) ** power) ** (1 / power)
    field = 0.16 * smooth_noise(rng, shape, 22) + 0.06 * smooth_noise(rng, shape, 7) - reach
    field -= 4 * np.clip(np.maximum(np.abs(row), np.abs(column)) - 0.8, 0, None)
    tissue = field > np.quantile(field, 1 - share)
    depth = ndimage.distance_transform_edt(tissue) - ndimage.distance_transform_edt(~tissue)
    return np.asarray(COARSE * ndimage.gaussian_filter(depth, 1.0), np.float32)


def scatter(rng: np.random.Generator, style: SlideStyle, layout: TissueLayout, size: tuple[int, int]) -> Nuclei:
    """Draw the benign nuclei of the stroma: a jittered grid thinned to local density.

    Lymphocytes are round and lie where the density is high, spindle nuclei lie along the fibres.
    """
    densest = 2.5 * style.nuclear_share
    spacing = style.nucleus * np.sqrt(np.pi / 4 / densest)
    places = jittered_grid(rng, size, spacing, 0.4)
    wanted = style.nuclear_share * np.exp(sample(layout.crowding, places, COARSE)) / densest
    occupied = (rng.random(len(places)) < wanted) & (sample(layout.depth, places, COARSE) > style.nucleus)
    places = places[occupied]
    crowded = sample(layout.crowding, places, COARSE) > 0.55
    spindle = rng.random(len(places)) < 0.15 + 0.5 * sample(layout.weave, places, COARSE)
    kinds = np.where(crowded, KIND_CODES["round"], np.where(spindle, KIND_CODES["spindle"], KIND_CODES["oval"]))
    kinds[rng.random(len(places)) < style.giants] = KIND_CODES["giant"]
    along = np.rint(rng.normal(0, 1.2, len(places))).astype(np.intp)
    directions = np.where(spindle, along, rng.integers(DIRECTIONS, size=len(places))) % DIRECTIONS
    return Nuclei(places, kinds, directions, rng.integers(VARIANTS, size=len(places)))


def jittered_grid(rng: np.random.Generator, size: tuple[int, int], spacing: float, jitter: float) -> Places:
    """Places on a jittered square grid over the slide without its margin.

    Each is moved by up to ``jitter`` of the spacing, in x and in y.
    """
    axes = [np.arange(MARGIN, extent - MARGIN, spacing) for extent in size]
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    moved = grid + rng.uniform(-jitter, jitter, grid.shape) * spacing
    return moved.clip(MARGIN, np.array(size) - MARGIN)


def glands(
    rng: np.random.Generator, style: SlideStyle, depth: Map, size: tuple[int, int]
) -> tuple[Image.Image, Image.Image, Nuclei]:
    """Fine maps of lumens and epithelium, and the nuclei around each lumen."""
    centres = jittered_grid(rng, size, 11 * style.nucleus, 0.25)
    region = smooth_noise(rng, depth.shape, 18)
    likely = np.where(sample(region, centres, COARSE) > 0.3, style.glands, 0.03)
    centres = centres[(rng.random(len(centres)) < likely) & (sample(depth, centres, COARSE) > 7 * style.nucleus)]
    lumens, epithelium = (Image.new("L", (size[0] // FINE, size[1] // FINE)) for _ in range(2))
    rings = [_gland(rng, style, centre, ImageDraw.Draw(lumens), ImageDraw.Draw(epithelium)) for centre in centres]
    lumens, epithelium = (fine.filter(ImageFilter.GaussianBlur(1)) for fine in (lumens, epithelium))
    places = np.concatenate([np.zeros((0, 2)), *(ring[0] for ring in rings)])
    directions = np.concatenate([np.zeros(0, np.intp), *(ring[1] for ring in rings)])
    solid = sample(np.asarray(lumens), places, FINE) < 128
    places, directions = places[solid], directions[solid]
    kinds = np.full(len(places), KIND_CODES["oval"])
    return lumens, epithelium, Nuclei(places, kinds, directions, rng.integers(VARIANTS, size=len(places)))


def _gland(
    rng: np.random.Generator,
    style: SlideStyle,
    centre: Float[np.ndarray, "2"],
    lumens: ImageDraw.ImageDraw,
    epithelium: ImageDraw.ImageDraw,
) -> tuple[Places, Codes]:
    radius, stretch = rng.uniform(3.0, 5.0) * style.nucleus, rng.uniform(0.75, 1.3)
    angle = np.linspace(0, 2 * np.pi, max(8, int(2 * np.pi * radius / (0.95 * style.nucleus))), endpoint=False)
    waves = 1 + 0.08 * np.cos(2 * angle + rng.uniform(0, 6)) + 0.06 * np.cos(3 * angle + rng.uniform(0, 6))
    spoke = np.stack([np.cos(angle) * stretch, np.sin(angle) / stretch], axis=1) * waves[:, None]
    height = 1.3 * style.nucleus
    for draw, reach in ((epithelium, radius + height), (lumens, radius - height)):
        draw.polygon([tuple(point) for point in ((centre + spoke * reach) / FINE).tolist()], fill=255)
    places = centre + spoke * radius + rng.normal(0, 0.12 * style.nucleus, spoke.shape)
    directions = np.rint(angle / np.pi * DIRECTIONS).astype(np.intp) % DIRECTIONS
    return places, directions


def fold(rng: np.random.Generator, shape: tuple[int, int]) -> Map:
    """Coarse map of extra thickness along a curved fold, on every fourth slide."""
    folded, angle, offset = rng.random() < 0.25, rng.uniform(0, np.pi), rng.uniform(-0.25, 0.25)
    row, column = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    bend = 0.04 * smooth_noise(rng, shape, 16)
    distance = row * np.cos(angle) + column * np.sin(angle) + offset + bend
    length = np.exp(-(((column * np.cos(angle) - row * np.sin(angle)) / 0.5) ** 4))
    return np.asarray(folded * rng.uniform(0.5, 0.9) * length * np.exp(-((distance / 0.012) ** 2)), np.float32)


def pen_strokes(rng: np.random.Generator, depth: Map, size: tuple[int, int]) -> Image.Image:
    """Fine map of a pen line along the tissue's edge, on every fourth slide."""
    strokes = Image.new("L", (size[0] // FINE, size[1] // FINE))
    marked, start, reach = rng.random() < 0.25, rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 2.5)
    width, gap = rng.uniform(40, 80), rng.uniform(-40, 90)
    angle = start + np.linspace(0, reach, 40)
    centre = np.array([np.mean(axis) for axis in np.nonzero(depth > 0)])[::-1] * COARSE
    rays = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    steps = np.arange(0, max(size), COARSE)
    inside = sample(depth, (centre + rays[:, None] * steps[:, None]).reshape(-1, 2), COARSE).reshape(40, -1) > 0
    edge = (inside * steps).max(axis=1).clip(max=0.45 * min(size) * 1.3)
    line = (centre + rays * (ndimage.gaussian_filter1d(edge, 2) + gap)[:, None]) / FINE
    if marked:
        points = [tuple(point) for point in line.tolist()]
        ImageDraw.Draw(strokes).line(points, fill=255, width=round(width / FINE), joint="curve")
    return strokes.filter(ImageFilter.GaussianBlur(1.5))
