"""Where things lie on a synthetic slide."""

import numpy as np
import pytest

from milcore.cohort.synthetic.anatomy import tissue_depth


def test_tissue_covers_the_asked_share_and_keeps_off_the_border() -> None:
    depth = tissue_depth(np.random.default_rng(1), (192, 256), 0.6)
    assert np.mean(depth > 0) == pytest.approx(0.6, abs=0.02)
    assert max(depth[0].max(), depth[-1].max(), depth[:, 0].max(), depth[:, -1].max()) < 0
