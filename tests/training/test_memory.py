"""One training step on a bag far larger than the memory it may take, measured on a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milcore.config import POOLING_LEVELS, POOLING_SCOPES
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore

STEP = """
import json, resource, sys
from pathlib import Path

import torch

from milcore.config import TrainConfig
from milcore.mil.dropout import Dropout
from milcore.mil.model import make_model
from milcore.mil.bags.load import load_bags
import pyarrow as pa

def resident_mb(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1000

uri, settings = sys.argv[1], json.loads(sys.argv[2])
config = TrainConfig(**settings)
splits = pa.table({"slide_id": ["x"], "patient_id": ["x"], "label": [1], "split": ["train"]})
bags = load_bags(uri, config, splits)
model = make_model(config, bags.instance().shape[-1], 2)
optimizer = torch.optim.AdamW(model.parameters())
before = resident_mb("VmRSS")
(batch,) = bags.batches([[0]])
(loss,) = model.losses(batch, Dropout(0, 0, config.dropout), lambda output: -output[:, 1])
loss.backward()
optimizer.step()
print(json.dumps({"before": before, "peak": resident_mb("VmHWM"), "loss": loss.item(), "length": len(batch.instances)}))
"""
PATCH_PX = 64
STREAMED = [name for name, scope in POOLING_SCOPES.items() if not scope.is_placed]


def one_training_step(uri: str, **settings: object) -> dict[str, Any]:
    command = [sys.executable, "-c", STEP, uri, json.dumps(settings)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def write_feature_store(uri: str, instances: int, width: int) -> None:
    """A slide that consists of its features, written block by block as an import would."""
    with PatchStore(uri).writer(SlideRecord("x", patches=instances), None, "none", 90):
        pass  # a slide without pixels
    block = np.random.default_rng(0).standard_normal((min(instances, 50_000), width), np.float32).astype(np.float16)
    features = np.concatenate([block] * (instances // len(block)))
    PatchStore(uri).slide("x").write_features("f", features, {})


def write_patch_store(uri: str, patches: int) -> None:
    store, generator = PatchStore(uri), np.random.default_rng(0)
    with store.writer(SlideRecord("x", patch_size_level0=float(PATCH_PX)), PATCH_PX, "none", 90) as writer:
        for place in range(patches):
            patch = generator.integers(0, 256, (PATCH_PX, PATCH_PX, 3), dtype=np.uint8)
            writer.append(patch, place * PATCH_PX, 0, 1.0)
        writer.write_thumbnail(np.zeros((8, 8, 3), np.uint8))


LONG = [pytest.mark.long, pytest.mark.slow]
MILLION = 1_000_000


@pytest.fixture(scope="session")
def million_instances(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Store of one slide of a million features, 2 GB."""
    uri = str(tmp_path_factory.mktemp("million"))
    write_feature_store(uri, MILLION, 1024)
    return uri


def assert_little_memory(measurement: dict[str, Any], instances: int) -> None:
    assert (measurement["length"], np.isfinite(measurement["loss"])) == (instances, True)
    assert measurement["peak"] - measurement["before"] < 600
    assert measurement["peak"] < 1500


def test_a_bag_of_features_is_streamed_from_the_store_in_little_memory(tmp_path: Path) -> None:
    """As f2 the bag takes 2,048 B an instance, as fp32 with its activations 8 kB: 0.6 GB and 2.4 GB."""
    write_feature_store(str(tmp_path), 300_000, 1024)
    measurement = one_training_step(str(tmp_path), features="f", cache_mb=100, activation_mb=100)
    assert_little_memory(measurement, 300_000)


@pytest.mark.parametrize("pooling", [pytest.param(name, marks=LONG) for name in STREAMED])
def test_every_pooling_that_streams_takes_a_million_instances_in_little_memory(
    pooling: str, million_instances: str
) -> None:
    """2 GB as f2, 8 GB as fp32 with their activations."""
    settings = {"pooling": pooling, "level": POOLING_LEVELS[pooling][-1], "features": "f"}
    measurement = one_training_step(million_instances, **settings, cache_mb=100, activation_mb=100)
    assert_little_memory(measurement, MILLION)


@pytest.mark.parametrize("patches", [2_000, pytest.param(20_000, marks=LONG)], ids="{:,}".format)
def test_a_bag_of_patches_is_streamed_through_the_trainable_encoder(tmp_path: Path, patches: int) -> None:
    """A 64-px patch leaves 1 MB of activations in the convolutions."""
    write_patch_store(str(tmp_path), patches)
    measurement = one_training_step(str(tmp_path), features=None, encoder="conv", cache_mb=100, activation_mb=100)
    assert (measurement["length"], np.isfinite(measurement["loss"])) == (patches, True)
    assert measurement["peak"] - measurement["before"] < 800
    assert measurement["peak"] < 2000
