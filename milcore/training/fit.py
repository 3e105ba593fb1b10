"""Training on bags at hand: no store, no run folder, one process."""

import torch

from milcore.config import TrainConfig, sees_patches, with_settings
from milcore.errors import InputError
from milcore.mil.bags.bags import Bags, cache_bytes, check_bags
from milcore.mil.model import MILModel
from milcore.runtime.progress import EpochProgress
from milcore.training.context import LocalContext
from milcore.training.loop import train_model

# settings of how bags are read from a store
OF_A_STORE = {"features": "the bags are read already", "bag": "the bags are made already"}


@with_settings(OF_A_STORE, config=TrainConfig)
def fit(bags: Bags, *, use_gpu: bool = False, config: TrainConfig) -> MILModel:
    """Train a model on split ``train`` of bags of features.

    The epoch that ranks first on split ``val`` is kept, by AUROC, then by loss; without validation bags the last. Split
    ``test`` is not touched. This is the training of ``milcore train``: the same features, splits and settings give
    the same weights, and so does the same seed again. ``predict_bags`` applies the model.

    Args:
        bags: such as those of ``Bags.from_arrays``.
        use_gpu: compute on a CUDA device.
        config: the model and its training; fields given as keywords override its own.

    Raises:
        InputError: ``bags`` are no Bags, a setting is unknown or out of range, or the training bags are not of several
            classes.
        MILError: the loss is not finite.
    """
    check_bags(bags)
    if sees_patches(config.encoder):
        raise InputError(f"encoder: expected one that takes features, got {config.encoder!r}; allowed: linear, mlp")
    _check_training_bags(bags)
    if use_gpu and not torch.cuda.is_available():
        raise InputError("use_gpu: expected a CUDA device, got none here; allowed: False")
    context = LocalContext(None, torch.device("cuda" if use_gpu else "cpu"), EpochProgress(config.epochs))
    return train_model(config, bags.with_cache(cache_bytes(config)), context).model


def _check_training_bags(bags: Bags) -> None:
    """Check that every class has a training bag.

    Raises:
        InputError: a class has none, or there is only one.
    """
    names = bags.class_names or tuple(map(str, range(bags.classes)))
    labels = {bags.entries[index].label for index in bags.split("train")}
    lacking = [name for label, name in enumerate(names) if label not in labels]
    if lacking or len(labels) < 2:
        raise InputError(
            f"labels: expected training bags of two or more classes, got none of {', '.join(lacking) or 'a second'}; "
            "allowed: at least one bag each; add some, or change splits"
        )
