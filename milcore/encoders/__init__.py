"""Encoders f: patches to instance features. A row of ENCODERS is one class.

A frozen encoder runs once per patch (``milcore encode``) and its features are kept in the store; a trainable one is
part of the model and learns from patches.
"""

from milcore.encoders.conv import ConvEncoder
from milcore.encoders.efficientnet import EfficientNetLite0

FROZEN_ENCODERS = {"efficientnet_lite0": EfficientNetLite0}
TRAINABLE_ENCODERS = {"conv": ConvEncoder}
ENCODERS = {**FROZEN_ENCODERS, **TRAINABLE_ENCODERS}
