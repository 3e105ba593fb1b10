"""One forward pass gives each bag its probability and each instance its weight, however bags are packed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from milcore.cohort.splits import make_splits
from milcore.config import SplitConfig, TrainConfig
from milcore.mil.bags.batch import pack
from milcore.mil.bags.load import load_bags
from milcore.mil.inference import predict_bags
from milcore.mil.model import make_model
from tests.cohorts import write_features, write_store


@pytest.mark.parametrize("memory_mb", [0.0001, 0.005, 1000.0])
def test_bags_predicted_together_or_alone_are_the_same(tmp_path: Path, memory_mb: float) -> None:
    store = write_store(str(tmp_path))
    write_features(store)
    config = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, activation_mb=memory_mb)
    bags = load_bags(store.uri, config, make_splits(store.manifest(), SplitConfig()))
    model = make_model(config, 3, classes=2)
    predictions = predict_bags([model], bags, [4, 0, 7], torch.device("cpu"))
    assert list(predictions) == [4, 0, 7]
    for index, prediction in predictions.items():
        with torch.no_grad():
            alone = model.predict_bags(pack([bags[index]], [index]))
        np.testing.assert_allclose(prediction.probability, alone.output[0].exp().numpy(), atol=1e-6)
        np.testing.assert_allclose(prediction.attention, alone.attention.numpy(), atol=1e-6)
        assert prediction.attention.sum() == pytest.approx(1.0)
