"""Table of the instance encoders that are trained with the model.

They take features (``linear``, ``mlp``) or patches (``conv``, ``lenet5``); any frozen encoder of torch may be
fine-tuned too, whole or in its last blocks.
"""

from collections.abc import Callable

from milcore.config import FeatureForm, TrainConfig
from milcore.mil.instance_encoders.cnn import PixelEncoder, conv, lenet5
from milcore.mil.instance_encoders.features import FeatureEncoder, linear, mlp
from milcore.mil.instance_encoders.finetune import PretrainedEncoder
from milcore.mil.instance_encoders.protocol import InstanceEncoder

ON_FEATURES: dict[str, Callable[[int, int, FeatureForm], FeatureEncoder]] = {"linear": linear, "mlp": mlp}
ON_PATCHES: dict[str, Callable[[int], PixelEncoder]] = {"conv": conv, "lenet5": lenet5}


def trainable_encoder(config: TrainConfig, width: int) -> InstanceEncoder:
    """Build the instance encoder that a config names.

    Args:
        config: of the model.
        width: of the features, for an encoder that takes features.
    """
    if config.encoder in ON_FEATURES:
        return ON_FEATURES[config.encoder](width, config.hidden, config.feature_form)
    if config.encoder in ON_PATCHES:
        return ON_PATCHES[config.encoder](config.hidden)
    return PretrainedEncoder(config.encoder, config.hidden, config.train_blocks)
