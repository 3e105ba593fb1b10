"""``model.safetensors``: the weights of a finished run as one file."""

import json

from safetensors import SafetensorError
from safetensors.torch import load, save

from milcore import __version__
from milcore.config import Target, TrainConfig
from milcore.errors import DamageError
from milcore.mil.model import MILModel, make_model
from milcore.training.run_files import read_file


def model_bytes(model: MILModel, best_epoch: int, target: Target) -> bytes:
    """The bytes of ``model.safetensors``, equal for equal models; its metadata names epoch and target."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return _with_metadata(
        save(tensors), {"best_epoch": str(best_epoch), "milcore_version": __version__, "target": target}
    )


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    """Add metadata to a safetensors file, its keys in order.

    ``save`` itself would write them in a random one.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(data[8:end])}, separators=(",", ":"))
    header += " " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header.encode() + data[end:]


def load_model(uri: str, config: TrainConfig) -> MILModel:
    """Load a model on the CPU, in evaluation mode.

    Args:
        uri: of ``model.safetensors``.
        config: the settings it was trained with.
    """
    data = read_file(uri)
    try:
        weights = load(data)
    except SafetensorError as error:
        raise DamageError(f"{uri}: expected the weights of a model, got a damaged file ({error}); restore it") from None
    width = len(weights["encoder.mean"]) if "encoder.mean" in weights else 0
    logits = len(weights["classifier.bias"])
    model = make_model(config, width, classes=2 if logits == 1 else logits)
    model.load_state_dict(weights)
    return model.eval()
