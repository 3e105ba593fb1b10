"""Encoders f: patches to instance features. A row of a table is one function, or a line of facts.

A frozen encoder (``PRESETS``, ``LOADERS``; named by a spec string) runs once per patch (``milcore encode``) and its
features are kept in the store. A trainable one is part of the model and learns from patches, or from features
(``linear``, ``mlp``); any frozen one of torch may be trained too, whole or in its last blocks.
"""

from collections.abc import Callable

from milcore.config import TrainableEncoderName, TrainConfig
from milcore.encoders.features import FeatureEncoder, linear, mlp
from milcore.encoders.loaders import LOADERS
from milcore.encoders.pixels import PixelEncoder, conv, lenet5
from milcore.encoders.presets import PRESETS
from milcore.encoders.pretrained import PretrainedEncoder

__all__ = ["LOADERS", "PRESETS", "TRAINABLE_ENCODERS", "TrainableEncoder", "trainable_encoder"]

TrainableEncoder = FeatureEncoder | PixelEncoder | PretrainedEncoder

TRAINABLE_ENCODERS: dict[TrainableEncoderName, Callable[[int, int], TrainableEncoder]] = {
    "linear": linear,
    "mlp": mlp,
    "conv": conv,
    "lenet5": lenet5,
}


def trainable_encoder(config: TrainConfig, width: int) -> TrainableEncoder:
    """The encoder that a model learns: of the table, or one with weights of its own.

    Args:
        config: names it.
        width: of the features it is to take, where it takes features.
    """
    for name, encoder in TRAINABLE_ENCODERS.items():
        if name == config.encoder:
            return encoder(width, config.hidden)
    return PretrainedEncoder(config.encoder, config.hidden, config.train_blocks)
