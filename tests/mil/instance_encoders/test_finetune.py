"""Networks with weights of their own learn with the model, whole or in their last blocks, also in chunks."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from milcore.config import SplitConfig, TrainConfig, parse_config
from milcore.encoders.networks.vit import VisionTransformer, VitShape
from milcore.errors import InputError, StoreError
from milcore.mil.bags.load import load_bags
from milcore.mil.instance_encoders.finetune import PretrainedEncoder, learn_from
from milcore.mil.model import make_model
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run
from tests.cohorts import PATCH_PX, write_store

SHAPE = VitShape(
    width=8, depth=3, heads=16, patch_px=8, positions=5, patches=4, registers=0, inner=16, gated=False, scaled=True
)


@pytest.fixture
def uni(tmp_path: Path) -> str:
    """A tiny network under the name of a large one, which sets its input; the width is not checked in training."""
    torch.manual_seed(0)
    network = VisionTransformer(SHAPE._replace(width=32))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "uni.safetensors")
    return f"uni@{tmp_path / 'uni.safetensors'},input_px={PATCH_PX},mpp=any"


def config(encoder: str, **changes: object) -> TrainConfig:
    settings = {"features": None, "encoder": encoder, "hidden": 8, "attention_hidden": 4, "epochs": 2, "dropout": 0.0}
    return parse_config(TrainConfig, {**settings, **changes})


def trained_names(train_blocks: int | None) -> list[str]:
    network = VisionTransformer(SHAPE._replace(heads=2))
    learn_from(network, train_blocks)
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def test_the_last_blocks_learn_and_what_comes_after_them() -> None:
    every = [name for name, _ in VisionTransformer(SHAPE._replace(heads=2)).named_parameters()]
    assert trained_names(None) == every
    last = [name for name in every if name.startswith("blocks.2.")]
    assert trained_names(1) == [*last, "norm.weight", "norm.bias"]
    assert trained_names(3) == every[every.index("blocks.0.norm1.weight") :]
    assert trained_names(0) == []
    with pytest.raises(InputError, match="expected at most 3, the blocks of the network, got 4; allowed: 0 to 3"):
        trained_names(4)


def test_a_run_changes_the_last_block_alone_and_is_loaded_again(tmp_path: Path, uni: str) -> None:
    store = write_store(str(tmp_path / "store"), slides=8)
    run, settings = str(tmp_path / "run"), config(uni, train_blocks=1)
    prepare_run(store.uri, run, settings, SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    before = PretrainedEncoder(uni, 8, 1).network.state_dict()
    after = Run(run).models()[0].encoder.network.state_dict()
    changed = {
        name.removeprefix("network.").split(".")[1] for name in before if not torch.equal(before[name], after[name])
    }
    assert changed == {"2", "weight", "bias"}
    assert all(
        torch.equal(before[name], after[name]) for name in before if ".blocks.0." in name or "patch_embed" in name
    )


def test_chunks_that_are_recomputed_give_the_gradient_of_the_whole(tmp_path: Path, uni: str) -> None:
    store = write_store(str(tmp_path / "store"), slides=6, patches=20)
    prepare_run(store.uri, str(tmp_path / "run"), config(uni), SplitConfig())
    bags = load_bags(store.uri, config(uni), Run(str(tmp_path / "run")).splits())
    gradients = []
    for activation_mb in (1000.0, 0.001):
        model = make_model(config(uni, precision="fp64", activation_mb=activation_mb), 3, classes=2)
        (batch,) = bags.batches([(0, 1, 2)])
        assert model.chunk_plan(batch).oversized == (activation_mb < 1)
        loss = -model(batch, None).gather(1, batch.labels[:, None]).sum()
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_patches_at_another_scale_are_refused_in_training_too(tmp_path: Path, uni: str) -> None:
    store = write_store(str(tmp_path / "store"), slides=6)
    prepare_run(store.uri, str(tmp_path / "run"), config(uni.replace(",mpp=any", "")), SplitConfig())
    with pytest.raises(StoreError, match=r"expected 0\.5 um/px for the encoder, got patches of unknown um/px"):
        train_run(str(tmp_path / "run"), LocalContext(None, torch.device("cpu")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "f"}, "allowed: linear or mlp with features"),
        ({"encoder": "convolution"}, "expected an encoder, got 'convolution'"),
        ({"encoder": "conv", "train_blocks": 1}, "train_blocks: expected none with encoder conv"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(str(changes.pop("encoder", "uni")), **changes)
