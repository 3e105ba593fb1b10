"""``model.safetensors``: the weights of a finished run as one file."""

from safetensors.torch import load, save

from milcore import __version__
from milcore.config import TrainConfig
from milcore.mil.model import MILModel, make_model
from milcore.runtime import storage


def model_bytes(model: MILModel, best_epoch: int) -> bytes:
    """The bytes of ``model.safetensors``; its metadata names the epoch."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    data: bytes = save(tensors, metadata={"milcore_version": __version__, "best_epoch": str(best_epoch)})
    return data


def load_model(uri: str, config: TrainConfig) -> MILModel:
    """Load a model on the CPU, in evaluation mode.

    Args:
        uri: of ``model.safetensors``.
        config: the settings it was trained with.
    """
    weights = load(storage.read_bytes(uri))
    width = len(weights["encoder.mean"]) if "encoder.mean" in weights else 0
    logits = len(weights["classifier.bias"])
    model = make_model(config, width, classes=2 if logits == 1 else logits)
    model.load_state_dict(weights)
    return model.eval()
