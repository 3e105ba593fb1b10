"""Training on bags at hand: no store, no run folder, one process."""

import torch

from milcore.config import TrainConfig, sees_patches, with_settings
from milcore.errors import InputError
from milcore.mil.bags.bags import Bags, cache_bytes, check_bags
from milcore.mil.model import MILModel
from milcore.runtime.progress import EpochProgress
from milcore.training.context import LocalContext
from milcore.training.loop import train_model
from milcore.training.targets import TRAINING_TARGETS

# settings of how bags are read from a store
OF_A_STORE = {"features": "the bags are read already", "bag": "the bags are made already"}


@with_settings(OF_A_STORE, config=TrainConfig)
def fit(bags: Bags, *, use_gpu: bool = False, config: TrainConfig) -> MILModel:
    """Train a model on split ``train`` of bags of features.

    The epoch that ranks first on split ``val`` is kept, by AUROC, concordance or R2, then by loss; without validation
    bags the last. Split ``test`` is not touched. This is the training of ``milcore train``: the same features, splits
    and settings give the same weights, and so does the same seed again. ``predict_bags`` applies the model.

    Args:
        bags: such as those of ``Bags.from_arrays``.
        use_gpu: compute on a CUDA device.
        config: the model and its training; fields given as keywords override its own.

    Raises:
        InputError: ``bags`` are no Bags, a setting is unknown or out of range, or nothing can be learned from the
            training bags: of one class, without an event, or of one value.
        MILError: the loss is not finite.
    """
    check_bags(bags)
    if sees_patches(config.encoder):
        raise InputError(f"encoder: expected one that takes features, got {config.encoder!r}; allowed: linear, mlp")
    names = bags.class_names or tuple(map(str, range(bags.classes)))
    TRAINING_TARGETS[config.target].check_training([bags.entries[index] for index in bags.split("train")], names)
    if use_gpu and not torch.cuda.is_available():
        raise InputError("use_gpu: expected a CUDA device, got none here; allowed: False")
    context = LocalContext(None, torch.device("cuda" if use_gpu else "cpu"), EpochProgress(config.epochs))
    return train_model(config, bags.with_cache(cache_bytes(config)), context).model
