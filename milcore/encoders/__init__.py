"""Encoders f: patches to instance features. A row of a table is one class or function.

A frozen encoder runs once per patch (``milcore encode``) and its features are kept in the store. A trainable one is
part of the model and learns from patches, or from features (``linear``, ``mlp``).
"""

from collections.abc import Callable

from milcore.config import TrainableEncoderName
from milcore.encoders.efficientnet import EfficientNetLite0
from milcore.encoders.features import FeatureEncoder, linear, mlp
from milcore.encoders.pixels import PixelEncoder, conv, lenet5

TrainableEncoder = FeatureEncoder | PixelEncoder

FROZEN_ENCODERS = {"efficientnet_lite0": EfficientNetLite0}
TRAINABLE_ENCODERS: dict[TrainableEncoderName, Callable[[int, int], TrainableEncoder]] = {
    "linear": linear,
    "mlp": mlp,
    "conv": conv,
    "lenet5": lenet5,
}
