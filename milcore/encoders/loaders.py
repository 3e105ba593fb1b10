"""Loaders of the encoder networks, one function per kind, and their table.

Untrusted weights: all kinds read tensors only (safetensors, ``weights_only``), or a graph that ONNX Runtime interprets,
except ``torchscript:``, whose file is a program: load only files that you trust.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from milcore.encoders.networks import efficientnet
from milcore.encoders.networks.onnx import OnnxNetwork
from milcore.encoders.networks.resnet import UNUSED_PREFIXES, TruncatedResNet50
from milcore.encoders.networks.vit import VisionTransformer, VitShape
from milcore.encoders.spec import Tokens, Triple
from milcore.encoders.weights import load_state, read_state
from milcore.errors import InputError

Network = Callable[[Tensor], Tensor]


class LoaderInput(NamedTuple):
    """Arguments of a loader.

    Args:
        path: file or folder on the local disk.
        reference: the network's name, where the kind has names.
        heads: of a vision transformer.
        tokens: output tokens that make the feature.
        input_px: edge of the input; None where the loader determines it.
        device: that the network will be called on.
    """

    path: Path
    reference: str
    heads: int
    tokens: Tokens
    input_px: int | None
    device: torch.device


class LoadedNetwork(NamedTuple):
    """Network from normalised images to features, with the input its files describe."""

    network: Network
    input_px: int | None = None
    mean: Triple | None = None
    std: Triple | None = None


class TokenPooling(nn.Module):
    """Network followed by pooling of its tokens or maps to one feature per image.

    Args:
        network: gives (n, token, feature), (n, feature, h, w) or (n, feature).
        prefix: tokens before the patch tokens, the class token first; 0 without class token.
        tokens: that make the feature.
    """

    def __init__(self, network: nn.Module, prefix: int, tokens: Tokens) -> None:
        super().__init__()
        if tokens != "mean" and prefix == 0:
            raise InputError(
                f"encoder: tokens: expected tokens of a network without class token, got {tokens}; allowed: mean"
            )
        self.network = network
        self._prefix, self._tokens = prefix, tokens

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of normalised images."""
        out = self.network(pixels)
        return pool_tokens(out, self._prefix, self._tokens)


def pool_tokens(out: Tensor, prefix: int, tokens: Tokens) -> Tensor:
    """Class token, mean of the patch tokens, or both concatenated.

    Maps are averaged over space; features are returned as they are.
    """
    if out.ndim == 4:
        return out.mean(dim=(2, 3))
    if out.ndim == 2:
        return out
    parts = {"cls": [out[:, 0]], "mean": [out[:, prefix:].mean(dim=1)]}
    return torch.cat([part for name in tokens.split("+") for part in parts[name]], dim=1)


def load_efficientnet(inputs: LoaderInput) -> LoadedNetwork:
    """EfficientNet-Lite0 of the package."""
    network = efficientnet.EfficientNetLite0()
    load_state(network.network, read_state(inputs.path))
    return LoadedNetwork(network, mean=efficientnet.MEAN, std=efficientnet.STD)


def load_resnet50(inputs: LoaderInput) -> LoadedNetwork:
    """ResNet-50 up to its third stage.

    Weights of a whole ResNet-50 are accepted too.
    """
    network = TruncatedResNet50()
    load_state(network, read_state(inputs.path), ignore=UNUSED_PREFIXES)
    return LoadedNetwork(network)


def load_vit(inputs: LoaderInput) -> LoadedNetwork:
    """Vision transformer from weights with timm's names, without timm."""
    state = read_state(inputs.path)
    state = {name: value for name, value in state.items() if not name.startswith(("head.", "mask_token"))}
    shape = VitShape.of(state, inputs.heads, inputs.input_px or 224)
    with torch.device("meta"):
        network = VisionTransformer(shape)
    network.to_empty(device="cpu")
    load_state(network, state)
    return LoadedNetwork(TokenPooling(network, network.prefix, inputs.tokens))


def load_torchscript(inputs: LoaderInput) -> LoadedNetwork:
    """TorchScript program, whose first output is features, tokens or maps.

    It runs code of its author.
    """
    try:
        with warnings.catch_warnings():
            # torch deprecates writing such files; reading them stays supported
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(inputs.path), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise InputError(
            f"encoder: expected a TorchScript file, got {inputs.path.name} ({' '.join(str(error).split())[:300]}); "
            "allowed: files of torch.jit.save"
        ) from error
    return LoadedNetwork(_FirstOutput(network, inputs.tokens))


def load_onnx(inputs: LoaderInput) -> LoadedNetwork:
    """ONNX graph, interpreted by ONNX Runtime."""
    network = OnnxNetwork(inputs.path, inputs.device)
    return LoadedNetwork(lambda pixels: pool_tokens(network(pixels), 1, inputs.tokens), network.input_px)


def load_hf(inputs: LoaderInput) -> LoadedNetwork:
    """Vision network of transformers from a folder.

    Code in the folder is never run.
    """
    try:
        import transformers  # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError("encoder: hf: needs transformers; pip install 'milcore[hf]'") from None
    try:
        model = transformers.AutoModel.from_pretrained(
            inputs.path, trust_remote_code=False, weights_only=True, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"encoder: expected a network that transformers can load, got {inputs.path} ({reason}); allowed: "
            "folders of save_pretrained"
        ) from error
    has_class = any(name.endswith("cls_token") for name, _ in model.named_parameters())
    prefix = 1 + int(getattr(model.config, "num_register_tokens", 0) or 0) if has_class else 0
    described = _preprocessor(inputs.path)
    edge = described.get("input_px") or getattr(model.config, "image_size", None)
    network = TokenPooling(_HiddenState(model), prefix, inputs.tokens)
    return LoadedNetwork(network, edge if isinstance(edge, int) else None, described.get("mean"), described.get("std"))


def load_timm(inputs: LoaderInput) -> LoadedNetwork:
    """Network of timm by name, with weights from a file."""
    try:
        import timm  # noqa: PLC0415 - an extra
    except (ImportError, RuntimeError) as error:
        # with a torchvision of another build the import raises RuntimeError
        raise InputError(f"encoder: timm: needs timm ({error}); pip install 'milcore[timm]'") from None
    state = read_state(inputs.path)
    model = timm.create_model(inputs.reference, pretrained=False, num_classes=0)
    heads = ("head.", "fc.", "classifier.", "head_dist.")
    load_state(model, {name: value for name, value in state.items() if not name.startswith(heads)})
    described = timm.data.resolve_model_data_config(model)
    network = TokenPooling(_ForwardFeatures(model), int(getattr(model, "num_prefix_tokens", 1)), inputs.tokens)
    return LoadedNetwork(network, described["input_size"][-1], tuple(described["mean"]), tuple(described["std"]))


class _FirstOutput(nn.Module):
    """Network reduced to the first of its outputs."""

    def __init__(self, network: nn.Module, tokens: Tokens) -> None:
        super().__init__()
        self.network, self._tokens = network, tokens

    def forward(self, pixels: Tensor) -> Tensor:
        out = self.network(pixels)
        first = out[0] if isinstance(out, (tuple, list)) else out
        return pool_tokens(first, 1, self._tokens)


class _HiddenState(nn.Module):
    """Network of transformers reduced to its last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        hidden: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return hidden


class _ForwardFeatures(nn.Module):
    """Network of timm without its head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(pixels)
        return features


def _preprocessor(folder: Path) -> dict[str, Any]:
    """Edge, mean and standard deviation from ``preprocessor_config.json``, where present."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return {}
    described = json.loads(file.read_text())
    size = described.get("crop_size") or described.get("size")
    edge = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
    names = {"mean": "image_mean", "std": "image_std"}
    triples = {name: tuple(described[key]) for name, key in names.items() if isinstance(described.get(key), list)}
    return {"input_px": edge, **triples}


LOADERS: dict[str, Callable[[LoaderInput], LoadedNetwork]] = {
    "efficientnet_lite0": load_efficientnet,
    "resnet50": load_resnet50,
    "vit": load_vit,
    "torchscript": load_torchscript,
    "onnx": load_onnx,
    "timm": load_timm,
    "hf": load_hf,
}
