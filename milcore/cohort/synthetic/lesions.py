"""Lesions of synthetic slides: masks, outlines and nuclei.

A lesion's nuclei are fewer, larger and coarser than those they replace and absorb the same light together, so a lesion
differs by texture and not by colour.
"""

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage
from shapely import MultiPolygon, Polygon, box, union_all

from milcore.cohort.synthetic.anatomy import COARSE, Map, Nuclei, Places, smooth_noise
from milcore.cohort.synthetic.nuclei import DIRECTIONS, KIND_CODES, VARIANTS, NucleusBank

SMALL_SHARE = 0.025

Mask = Bool[np.ndarray, "row column"]


def place_lesions(rng: np.random.Generator, depth: Map, share: float) -> Mask:
    """Draw the coarse mask of lesions that cover ``share`` of the tissue.

    One compact blob, or two if the share is ``SMALL_SHARE`` or more, anywhere in the tissue, its edge included.
    """
    tissue = depth > 0
    lesion = np.zeros(depth.shape, bool)
    blobs = 1 if share < SMALL_SHARE else int(rng.integers(1, 3))
    for _ in range(blobs):
        rows, columns = np.nonzero(tissue & ~lesion)
        centre = rng.integers(len(rows))
        wobble = 1 + 0.12 * smooth_noise(rng, (depth.shape[0], depth.shape[1]), 5)
        reach = np.hypot(rows - rows[centre], columns - columns[centre]) * wobble[rows, columns]
        nearest = np.argsort(reach, kind="stable")[: round(share * tissue.sum() / blobs)]
        lesion[rows[nearest], columns[nearest]] = True
    return np.asarray(ndimage.binary_opening(lesion, iterations=2))


def outlines(lesion: Mask) -> tuple[Polygon, ...]:
    """Outlines of lesions in level-0 px, one polygon per connected blob."""
    cells = [box(c * COARSE, r * COARSE, (c + 1) * COARSE, (r + 1) * COARSE) for r, c in np.argwhere(lesion)]
    whole = union_all(cells).buffer(COARSE / 2).buffer(-COARSE / 2).simplify(COARSE / 2)
    return tuple(whole.geoms) if isinstance(whole, MultiPolygon) else (whole,) if not whole.is_empty else ()


def replace_nuclei(
    rng: np.random.Generator, nuclei: Nuclei, inside: Bool[np.ndarray, " nucleus"], bank: NucleusBank
) -> Nuclei:
    """Replace the benign nuclei inside by lesion nuclei that absorb equal light.

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
    return nuclei.take(~inside).concatenate(grown)


def spread_order(rng: np.random.Generator, places: Places, distance: float) -> Int[np.ndarray, " nucleus"]:
    """Random order of places in which places far apart come first.

    A first part has the places at least ``distance`` px from all before them, the second part the others.
    """
    first: list[int] = []
    later: list[int] = []
    for index in rng.permutation(len(places)):
        gaps = np.hypot(*(places[first] - places[index]).T)
        (later if np.any(gaps < distance) else first).append(int(index))
    return np.array(first + later, np.intp)
