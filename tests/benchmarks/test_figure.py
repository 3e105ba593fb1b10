"""The drawing of attention over nuclei, pixel by pixel."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.ilse2018.figure import GAP, draw
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore

EDGE = 16


def test_panels_show_patches_the_positive_ones_and_what_attention_lights(tmp_path: Path) -> None:
    """Grey patches 60, 120, 240 at x = 0, 20, 40 with attention .1, .1, .8; the last is positive.

    Rescaled attention is 0, 0, 1. Percentiles of ranks 1.5, 1.5, 3 of three are 100/3, 100/3 and 500/6.
    """
    store = PatchStore(str(tmp_path / "store"))
    record = SlideRecord("a", patch_size_level0=float(EDGE), size_level0=(200, 100))
    with store.writer(record, EDGE, "none", 90) as writer:
        for grey in (60, 120, 240):
            writer.append_patch(np.full((EDGE, EDGE, 3), grey, np.uint8))
        writer.write_rows("coords", np.array([[100, 7], [120, 7], [140, 7]]))
        writer.write_rows("instance_labels", np.array([0, -1, 1]))
    draw(store.slide("a"), np.array([0.1, 0.1, 0.8]), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        row = np.asarray(figure)[EDGE // 2, :, 0].astype(int)
    assert len(row) == 4 * 56 + 3 * GAP
    panels = [row[start : start + 56] for start in range(0, len(row), 56 + GAP)]
    places = [EDGE // 2, 20 + EDGE // 2, 40 + EDGE // 2]
    assert [list(panel[places]) for panel in panels] == [[60, 120, 240], [255, 255, 240], [0, 0, 240], [20, 40, 200]]
    assert panels[0][18] == 255, "white between patches"
