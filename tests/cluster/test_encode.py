"""Ray workers compute the features that one process computes."""

from pathlib import Path

import numpy as np

from milcore.cluster.launch import encode_with
from milcore.config import EncodeConfig, LaunchConfig
from tests.cohorts import write_store


def test_two_ray_workers_encode_what_one_process_encodes(local_ray: None, tmp_path: Path) -> None:
    alone = write_store(str(tmp_path / "alone"), slides=4)
    together = write_store(str(tmp_path / "together"), slides=4)
    encode_with(alone.uri, EncodeConfig(), LaunchConfig())
    encoded = encode_with(together.uri, EncodeConfig(), LaunchConfig(workers=2))
    assert sorted(slide.slide_id for slide in encoded) == together.slide_ids() == alone.slide_ids()
    assert not any(slide.skipped for slide in encoded)
    for slide_id in alone.slide_ids():
        features = [store.slide(slide_id).features("efficientnet_lite0").read(0, 10_000) for store in (alone, together)]
        # a worker has other threads, and sums in another order, by one step of float16
        np.testing.assert_allclose(*features, rtol=4e-3, atol=1e-3)
    assert all(slide.skipped for slide in encode_with(together.uri, EncodeConfig(), LaunchConfig(workers=2)))
