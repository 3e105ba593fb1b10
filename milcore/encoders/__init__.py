"""Encoders f: patches to instance features. A row of a table is one function, or a line of facts.

A frozen encoder (``PRESETS``, ``LOADERS``; named by a spec string) runs once per patch (``milcore encode``) and its
features are kept in the store. A trainable one is part of the model and learns from patches, or from features
(``linear``, ``mlp``); any frozen one of torch may be trained too, whole or in its last blocks.
"""

from collections.abc import Callable

from milcore.config import FeatureForm, TrainConfig
from milcore.encoders.features import FeatureEncoder, linear, mlp
from milcore.encoders.loaders import LOADERS
from milcore.encoders.pixels import PixelEncoder, conv, lenet5
from milcore.encoders.presets import PRESETS
from milcore.encoders.pretrained import PretrainedEncoder

__all__ = ["LOADERS", "ON_FEATURES", "ON_PATCHES", "PRESETS", "TrainableEncoder", "trainable_encoder"]

TrainableEncoder = FeatureEncoder | PixelEncoder | PretrainedEncoder

ON_FEATURES: dict[str, Callable[[int, int, FeatureForm], FeatureEncoder]] = {"linear": linear, "mlp": mlp}
ON_PATCHES: dict[str, Callable[[int], PixelEncoder]] = {"conv": conv, "lenet5": lenet5}


def trainable_encoder(config: TrainConfig, width: int) -> TrainableEncoder:
    """The encoder that a model learns: of a table, or one with weights of its own.

    Args:
        config: names it.
        width: of the features it is to take, where it takes features.
    """
    if config.encoder in ON_FEATURES:
        return ON_FEATURES[config.encoder](width, config.hidden, config.feature_form)
    if config.encoder in ON_PATCHES:
        return ON_PATCHES[config.encoder](config.hidden)
    return PretrainedEncoder(config.encoder, config.hidden, config.train_blocks)
