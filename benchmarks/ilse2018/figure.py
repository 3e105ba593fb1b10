"""Figure of attention over the patches of a bag."""

from pathlib import Path

import numpy as np

from milcore.evaluation.attention.maps import percentile, png
from milcore.store.slide_group import SlideGroup

GAP = 8
WHITE = 255


def draw(slide: SlideGroup, attention: np.ndarray, file: Path) -> None:
    """Write four panels of a bag's patches at their places, side by side.

    They are all patches, the positive instances, and every patch lit by its attention, twice.
    In the third panel attention is rescaled to ``(a - min) / (max - min)``, as in the source, so that black is the
    least; in the fourth a patch is lit by its percentile, which shows the order where few patches hold all attention.

    Args:
        slide: with patches and places; the middle panel stays white where instances have no labels.
        attention: a share per instance.
        file: the PNG.

    Source: Ilse et al. 2018, figure 5.
    """
    patches, labels = slide.patches(0, len(slide)), slide.instance_labels
    share = (attention - attention.min()) / max(np.ptp(attention), np.finfo(float).tiny)
    positive = np.zeros(len(slide), bool) if labels is None else labels == 1
    corners = slide.coords - slide.coords.min(axis=0)
    panels = [
        _panel(patches, corners),
        _panel(patches[positive], corners, positive),
        _panel(_lit(patches, share), corners),
        _panel(_lit(patches, percentile(attention) / 100), corners),
    ]
    gap = np.full((len(panels[0]), GAP, 3), WHITE, np.uint8)
    row = [piece for panel in panels for piece in (panel, gap)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(np.concatenate(row[:-1], axis=1)))


def _lit(patches: np.ndarray, light: np.ndarray) -> np.ndarray:
    return np.rint(patches * light[:, None, None, None]).astype(np.uint8)


def _panel(patches: np.ndarray, corners: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    """Patches on white; all corners, chosen or not, set its size."""
    edge = patches.shape[1]
    width, height = corners.max(axis=0) + edge
    panel = np.full((height, width, 3), WHITE, np.uint8)
    for patch, (x, y) in zip(patches, corners if chosen is None else corners[chosen], strict=True):
        panel[y : y + edge, x : x + edge] = patch
    return panel
