"""One synthetic H&E slide: what it looks like, drawn from a random generator and nothing else.

Two maps of stain concentration are painted, haematoxylin (nuclei, stamped from a bank of sprites) and eosin (fibres),
and turned into light by Beer and Lambert, strip by strip. A lesion takes the place of the nuclei it covers: fewer,
larger, coarser ones that together absorb the same light, so texture tells it and colour does not. Everything else
(stain, nuclear size and density, fibres, glands, blur, pen, fold) is drawn before anyone asks whether the slide has a
lesion.

Axis words: row, column, rgb, nucleus. Places are (x, y) in level-0 px; coarse maps have one value per ``COARSE`` px.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image, ImageDraw, ImageFilter
from scipy import fft, ndimage
from shapely import MultiPolygon, Polygon, box, union_all

from milcore.nuclei import CONCENTRATION, DIRECTIONS, KIND_CODES, VARIANTS, NucleusBank, nucleus_bank

COARSE = 16
FINE = 4
STRIP = 256
MARGIN = 64
HAEMATOXYLIN = (0.60, 0.71, 0.37)
EOSIN = (0.14, 0.86, 0.49)
PENS = ((0.10, 0.20, 0.65), (0.08, 0.45, 0.20), (0.12, 0.12, 0.14), (0.75, 0.10, 0.15))

Map = Float32[np.ndarray, "row column"]
Mask = Bool[np.ndarray, "row column"]
Places = Float[np.ndarray, "nucleus 2"]
Codes = Int[np.ndarray, " nucleus"]


@dataclass(frozen=True)
class Look:
    """What varies from slide to slide and says nothing about the label.

    Args:
        stains: optical density per unit of haematoxylin and of eosin.
        nucleus: mean diameter of a benign nucleus, px.
        nuclear_share: mean share of tissue area under nuclei.
        darkness: mean concentration inside a nucleus.
        eosin: mean concentration of the stroma.
        fibre: amplitude of the fibres relative to ``eosin``.
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
    glands: float
    blur: float
    tissue_share: float
    paper: float
    pen: Float[np.ndarray, " rgb"]


@dataclass(frozen=True)
class Nuclei:
    """Places (x, y), kind codes, directions (half-turn steps) and variants of nuclei."""

    places: Places
    kinds: Codes
    directions: Codes
    variants: Codes

    def take(self, which: Int[np.ndarray, " chosen"] | Bool[np.ndarray, " nucleus"]) -> "Nuclei":
        """The chosen nuclei."""
        return Nuclei(self.places[which], self.kinds[which], self.directions[which], self.variants[which])

    def and_also(self, other: "Nuclei") -> "Nuclei":
        """These nuclei, then the others."""
        return Nuclei(
            np.concatenate([self.places, other.places]),
            np.concatenate([self.kinds, other.kinds]),
            np.concatenate([self.directions, other.directions]),
            np.concatenate([self.variants, other.variants]),
        )


@dataclass(frozen=True)
class Ground:
    """Where things are on a slide.

    Args:
        depth: px to the tissue's edge, positive inside (coarse).
        crowding: logarithm of the local nuclear density relative to the slide's (coarse).
        weave: share of the first fibre texture, 0 to 1 (coarse).
        fold: extra thickness, 0 where the section lies flat (coarse).
        lumens: 255 in the hollow of a gland (fine).
        epithelium: 255 in a gland, its hollow included (fine).
        pen: 255 under a pen stroke (fine).
    """

    depth: Map
    crowding: Map
    weave: Map
    fold: Map
    lumens: Image.Image
    epithelium: Image.Image
    pen: Image.Image


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
    bank = nucleus_bank(for_bank, look.nucleus, look.darkness, look.blur)
    ground, nuclei = lay_out(for_layout, look, size)
    textures = [fibre_texture(for_textures, edge, look.blur) for edge in (1024, 768)]
    lesion = place_lesions(for_lesions, ground.depth, lesion_share)
    nuclei = replace_nuclei(for_lesions, nuclei, sample(lesion, nuclei.places, COARSE), bank)
    return Painting(develop(look, ground, textures, stamp(nuclei, bank, size)), outlines(lesion))


def draw_look(rng: np.random.Generator, hue_shift: float) -> Look:
    """Draw a slide's nuisance."""
    stains = np.array([HAEMATOXYLIN, EOSIN]) * rng.uniform(0.88, 1.12, (2, 3))
    stains[1, 2] *= 1 + hue_shift
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    return Look(
        stains=stains,
        nucleus=rng.uniform(10.5, 15.0),
        nuclear_share=rng.uniform(0.08, 0.15),
        darkness=rng.uniform(0.9, 1.4),
        eosin=rng.uniform(0.35, 0.62),
        fibre=rng.uniform(0.10, 0.26),
        glands=rng.uniform(0.0, 0.8),
        blur=rng.uniform(0.4, 0.9),
        tissue_share=rng.uniform(0.50, 0.66),
        paper=rng.uniform(240.0, 249.0),
        pen=np.array(PENS[rng.integers(len(PENS))]),
    )


def lay_out(rng: np.random.Generator, look: Look, size: tuple[int, int]) -> tuple[Ground, Nuclei]:
    """Draw where tissue, glands, pen and fold lie, and the benign nuclei among them."""
    shape = (size[1] // COARSE, size[0] // COARSE)
    depth = tissue_depth(rng, shape, look.tissue_share)
    lumens, epithelium, rings = glands(rng, look, depth, size)
    ground = Ground(
        depth=depth,
        crowding=0.30 * smooth_noise(rng, shape, 14) + 0.15 * smooth_noise(rng, shape, 4),
        weave=np.clip(0.5 + 0.5 * smooth_noise(rng, shape, 20), 0, 1),
        fold=fold(rng, shape),
        lumens=lumens,
        epithelium=epithelium,
        pen=pen_strokes(rng, depth, size),
    )
    stroma = scatter(rng, look, ground, size)
    outside = sample(np.asarray(epithelium), stroma.places, FINE) == 0
    return ground, stroma.take(outside).and_also(rings)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Map:
    """Gaussian noise smoothed over ``sigma`` map px, of mean 0 and standard deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), sigma, mode="wrap")
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def sample(values: np.ndarray, places: Places, scale: int) -> np.ndarray:
    """The value of a map with one value per ``scale`` px at each place."""
    column, row = (places // scale).astype(np.intp).T
    return values[row.clip(0, values.shape[0] - 1), column.clip(0, values.shape[1] - 1)]


def tissue_depth(rng: np.random.Generator, shape: tuple[int, int], share: float) -> Map:
    """Signed distance to the edge of a tissue that covers ``share`` of the slide and keeps off its border, px."""
    row, column = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    centre = rng.uniform(-0.08, 0.08, 2)
    power = rng.uniform(2.0, 3.5)
    reach = (np.abs(row - centre[0]) ** power + np.abs(column - centre[1]) ** power) ** (1 / power)
    field = 0.16 * smooth_noise(rng, shape, 22) + 0.06 * smooth_noise(rng, shape, 7) - reach
    field -= 4 * np.clip(np.maximum(np.abs(row), np.abs(column)) - 0.8, 0, None)
    tissue = field > np.quantile(field, 1 - share)
    depth = ndimage.distance_transform_edt(tissue) - ndimage.distance_transform_edt(~tissue)
    return (COARSE * ndimage.gaussian_filter(depth, 1.0)).astype(np.float32)


def scatter(rng: np.random.Generator, look: Look, ground: Ground, size: tuple[int, int]) -> Nuclei:
    """Benign nuclei of the stroma: a jittered grid thinned to the local density; lymphocytes crowd, spindles lie."""
    densest = 2.5 * look.nuclear_share
    spacing = look.nucleus * np.sqrt(np.pi / 4 / densest)
    places = jittered_grid(rng, size, spacing, 0.4)
    wanted = look.nuclear_share * np.exp(sample(ground.crowding, places, COARSE)) / densest
    kept = (rng.random(len(places)) < wanted) & (sample(ground.depth, places, COARSE) > look.nucleus)
    places = places[kept]
    crowded = sample(ground.crowding, places, COARSE) > 0.55
    spindle = rng.random(len(places)) < 0.15 + 0.5 * sample(ground.weave, places, COARSE)
    kinds = np.where(crowded, KIND_CODES["round"], np.where(spindle, KIND_CODES["spindle"], KIND_CODES["oval"]))
    along = np.rint(rng.normal(0, 1.2, len(places))).astype(np.intp)
    directions = np.where(spindle, along, rng.integers(DIRECTIONS, size=len(places))) % DIRECTIONS
    return Nuclei(places, kinds, directions, rng.integers(VARIANTS, size=len(places)))


def jittered_grid(rng: np.random.Generator, size: tuple[int, int], spacing: float, jitter: float) -> Places:
    """Places on a square grid over the slide less its margin, each moved by up to ``jitter`` of the spacing."""
    axes = [np.arange(MARGIN, extent - MARGIN, spacing) for extent in size]
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    moved = grid + rng.uniform(-jitter, jitter, grid.shape) * spacing
    return moved.clip(MARGIN, np.array(size) - MARGIN)


def glands(
    rng: np.random.Generator, look: Look, depth: Map, size: tuple[int, int]
) -> tuple[Image.Image, Image.Image, Nuclei]:
    """Fine maps of hollows and of epithelium, and the ring of nuclei that stand around each hollow."""
    centres = jittered_grid(rng, size, 11 * look.nucleus, 0.25)
    region = smooth_noise(rng, depth.shape, 18)
    likely = np.where(sample(region, centres, COARSE) > 0.3, look.glands, 0.03)
    centres = centres[(rng.random(len(centres)) < likely) & (sample(depth, centres, COARSE) > 7 * look.nucleus)]
    lumens, epithelium = (Image.new("L", (size[0] // FINE, size[1] // FINE)) for _ in range(2))
    rings = [_gland(rng, look, centre, ImageDraw.Draw(lumens), ImageDraw.Draw(epithelium)) for centre in centres]
    lumens, epithelium = (fine.filter(ImageFilter.GaussianBlur(1)) for fine in (lumens, epithelium))
    places = np.concatenate([np.zeros((0, 2)), *(ring[0] for ring in rings)])
    directions = np.concatenate([np.zeros(0, np.intp), *(ring[1] for ring in rings)])
    solid = sample(np.asarray(lumens), places, FINE) < 128
    places, directions = places[solid], directions[solid]
    kinds = np.full(len(places), KIND_CODES["oval"])
    return lumens, epithelium, Nuclei(places, kinds, directions, rng.integers(VARIANTS, size=len(places)))


def _gland(
    rng: np.random.Generator,
    look: Look,
    centre: Float[np.ndarray, "2"],
    lumens: ImageDraw.ImageDraw,
    epithelium: ImageDraw.ImageDraw,
) -> tuple[Places, Codes]:
    radius, stretch = rng.uniform(3.0, 5.0) * look.nucleus, rng.uniform(0.75, 1.3)
    angle = np.linspace(0, 2 * np.pi, max(8, int(2 * np.pi * radius / (0.95 * look.nucleus))), endpoint=False)
    waves = 1 + 0.08 * np.cos(2 * angle + rng.uniform(0, 6)) + 0.06 * np.cos(3 * angle + rng.uniform(0, 6))
    spoke = np.stack([np.cos(angle) * stretch, np.sin(angle) / stretch], axis=1) * waves[:, None]
    height = 1.3 * look.nucleus
    for draw, reach in ((epithelium, radius + height), (lumens, radius - height)):
        draw.polygon([tuple(point) for point in ((centre + spoke * reach) / FINE).tolist()], fill=255)
    places = centre + spoke * radius + rng.normal(0, 0.12 * look.nucleus, spoke.shape)
    directions = np.rint(angle / np.pi * DIRECTIONS).astype(np.intp) % DIRECTIONS
    return places, directions


def fold(rng: np.random.Generator, shape: tuple[int, int]) -> Map:
    """Extra thickness along one curved line, on every fourth slide."""
    folded, angle, offset = rng.random() < 0.25, rng.uniform(0, np.pi), rng.uniform(-0.25, 0.25)
    row, column = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    bend = 0.04 * smooth_noise(rng, shape, 16)
    distance = row * np.cos(angle) + column * np.sin(angle) + offset + bend
    length = np.exp(-(((column * np.cos(angle) - row * np.sin(angle)) / 0.5) ** 4))
    return (folded * rng.uniform(0.5, 0.9) * length * np.exp(-((distance / 0.012) ** 2))).astype(np.float32)


def pen_strokes(rng: np.random.Generator, depth: Map, size: tuple[int, int]) -> Image.Image:
    """Fine map of a pen line that runs along a stretch of the tissue's edge, on every fourth slide."""
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


def place_lesions(rng: np.random.Generator, depth: Map, share: float) -> Mask:
    """One or two compact blobs that cover ``share`` of the tissue, anywhere in it, its edge included."""
    tissue = depth > 0
    lesion = np.zeros(depth.shape, bool)
    blobs = int(rng.integers(1, 3))
    for _ in range(blobs):
        rows, columns = np.nonzero(tissue & ~lesion)
        at = rng.integers(len(rows))
        reach = (
            np.hypot(rows - rows[at], columns - columns[at])
            * (1 + 0.12 * smooth_noise(rng, depth.shape, 5))[rows, columns]
        )
        nearest = np.argsort(reach, kind="stable")[: round(share * tissue.sum() / blobs)]
        lesion[rows[nearest], columns[nearest]] = True
    return ndimage.binary_opening(lesion, iterations=2)


def outlines(lesion: Mask) -> tuple[Polygon, ...]:
    """The lesions' outlines in level-0 px, one polygon for each connected blob."""
    cells = [box(c * COARSE, r * COARSE, (c + 1) * COARSE, (r + 1) * COARSE) for r, c in np.argwhere(lesion)]
    whole = union_all(cells).buffer(COARSE / 2).buffer(-COARSE / 2).simplify(COARSE / 2)
    return tuple(whole.geoms) if isinstance(whole, MultiPolygon) else (whole,) if not whole.is_empty else ()


def replace_nuclei(
    rng: np.random.Generator, nuclei: Nuclei, inside: Bool[np.ndarray, " nucleus"], bank: NucleusBank
) -> Nuclei:
    """Put lesion nuclei at some of the places inside, until they absorb the light that the benign ones there did.

    Places are taken in random order; one closer to a chosen place than 0.8 lesion diameters waits for a second round.
    """
    benign = nuclei.take(inside)
    wanted = bank.absorbed[benign.kinds, benign.directions, benign.variants].sum()
    order = spread_order(rng, benign.places, 0.8 * np.sqrt(bank.absorbed[KIND_CODES["lesion"]].mean() * 4))
    variants = rng.integers(VARIANTS, size=len(order))
    directions = rng.integers(DIRECTIONS, size=len(order))
    kinds = np.full(len(order), KIND_CODES["lesion"])
    light = np.cumsum(bank.absorbed[kinds, directions, variants])
    grown = Nuclei(benign.places[order], kinds, directions, variants).take(light - light[:1] / 2 <= wanted)
    return nuclei.take(~inside).and_also(grown)


def spread_order(rng: np.random.Generator, places: Places, distance: float) -> Int[np.ndarray, " nucleus"]:
    """A random order of the places in which those at least ``distance`` px from all before them come first."""
    first: list[int] = []
    later: list[int] = []
    for at in rng.permutation(len(places)):
        gaps = np.hypot(*(places[first] - places[at]).T)
        (later if np.any(gaps < distance) else first).append(int(at))
    return np.array(first + later, np.intp)


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
    noise = fft.rfft2(rng.standard_normal((edge, edge)).astype(np.float32))
    fibres = np.exp(-((across / 0.12) ** 2) - (along / 0.012) ** 2) - np.exp(
        -((across / 0.01) ** 2) - (along / 0.004) ** 2
    )
    grain = 0.012 * np.exp(-((across / 0.25) ** 2) - (along / 0.25) ** 2)
    straight = fft.irfft2(noise * (fibres + grain) * np.exp(-2 * (np.pi * blur) ** 2 * (across**2 + along**2)))
    shift = np.rint(18 * smooth_noise(rng, (edge, edge), edge / 16)).astype(np.intp)
    row = (np.arange(edge)[:, None] + shift) % edge
    wavy = straight[row, np.arange(edge)[None, :]]
    return ((wavy - wavy.mean()) / wavy.std()).astype(np.float32)


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
    return np.rint(look.paper * np.exp(-density)).astype(np.uint8).reshape(-1, 3)


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
