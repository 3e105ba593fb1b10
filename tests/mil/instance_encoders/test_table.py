"""The small trainable encoders: layers as published, gradients those of autograd."""

from typing import get_args

import pytest
import torch

from milcore.config import FEATURE_ENCODERS, FeatureForm, TrainableEncoderName
from milcore.mil.instance_encoders.cnn import conv, lenet5
from milcore.mil.instance_encoders.features import mlp
from milcore.mil.instance_encoders.table import ON_FEATURES, ON_PATCHES


def test_config_names_are_the_tables_keys() -> None:
    assert get_args(TrainableEncoderName) == (*ON_FEATURES, *ON_PATCHES)
    assert tuple(ON_FEATURES) == FEATURE_ENCODERS


@pytest.mark.parametrize("edge", [12, 27, 64])
def test_conv_takes_any_patch_size_and_chunks_do_not_matter(edge: int) -> None:
    torch.manual_seed(0)
    encoder = conv(8).embedder(torch.float32, torch.uint8, 1.0)
    patches = torch.randint(0, 256, (40, edge, edge, 3), dtype=torch.uint8)
    whole = encoder(patches, None)
    assert whole.shape == (40, 8)
    torch.testing.assert_close(whole[33:34], encoder(patches[33:34], None))


def test_paper_sized_patches_reach_the_linear_layer_unpooled() -> None:
    """27 px: conv 4 gives 24, pool 12, conv 3 gives 10, pool 5; the adaptive pooling is the identity."""
    layers = conv(8).layers
    before = layers[:6](torch.rand(1, 3, 27, 27))
    assert torch.equal(layers[6](before), before)


def test_lenet5_sees_the_mean_of_the_channels_and_reaches_its_linear_layer_unpooled() -> None:
    """28 px: conv 5 gives 24, pool 12, conv 5 gives 8, pool 4; the adaptive pooling is the identity."""
    torch.manual_seed(0)
    encoder = lenet5(8)
    grey = torch.randint(0, 256, (3, 28, 28, 1), dtype=torch.uint8).expand(-1, -1, -1, 3)
    embeddings = encoder.embedder(torch.float32, torch.uint8, 1.0)(grey, None)
    pixels = grey[..., :1].permute(0, 3, 1, 2) / 127.5 - 1.0
    torch.testing.assert_close(embeddings, encoder.layers(pixels))
    before = encoder.layers[:6](torch.rand(1, 1, 28, 28))
    assert torch.equal(encoder.layers[6](before), before)


@pytest.mark.parametrize("form", get_args(FeatureForm))
def test_mlp_is_three_layers_over_standardised_features_and_its_gradient_that_of_autograd(form: FeatureForm) -> None:
    torch.manual_seed(0)
    encoder = mlp(5, 4, form).double()
    assert [layer.out_features for layer in (encoder.project, *encoder.further)] == [256, 128, 4]
    encoder.standardise(torch.full((5,), 2.0), torch.full((5,), 3.0))
    features = torch.randn(7, 5, dtype=torch.float64)
    parameters = list(encoder.parameters())

    def plainly(values: torch.Tensor) -> torch.Tensor:
        values = (values - 2.0) / 3.0
        root = torch.where(values < 0, -1.0, 1.0) * values.abs().sqrt()
        values = {"standardised": values, "signed_root": root, "both": torch.cat([values, root], dim=1)}[form]
        for layer in (encoder.project, *encoder.further):
            values = torch.relu(layer(values))
        return 1.5 * values

    ours = encoder.embedder(torch.float64, torch.float64, 1.5)(features, None)
    torch.testing.assert_close(ours, plainly(features))
    for gradient, expected in zip(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(plainly(features).square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected)
