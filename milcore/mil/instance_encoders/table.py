"""Instance encoders f that are trained with the model: the table of their names.

They take features (``linear``, ``mlp``) or patches (``conv``, ``lenet5``); any frozen encoder of torch may be trained
too, whole or in its last blocks.
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
