"""How each kind of encoder becomes a callable network: one function a kind, and the table of them.

Untrusted weights: all kinds read tensors only (safetensors, ``weights_only``), or a graph that ONNX Runtime interprets,
but ``torchscript:``, whose file is a program: load only what you trust.
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
from milcore.encoders.networks.resnet import LEFT_OUT, TruncatedResNet50
from milcore.encoders.networks.vit import VisionTransformer, VitShape
from milcore.encoders.spec import Tokens, Triple
from milcore.encoders.weights import load_state, state_at
from milcore.errors import InputError

Network = Callable[[Tensor], Tensor]


class Source(NamedTuple):
    """What a loader is given.

    Args:
        path: file or folder on the local disk.
        reference: the network's name, where the kind has names.
        heads: of a vision transformer.
        tokens: which output tokens make the feature.
        input_px: edge of the input, where it is settled already.
        device: where the network will be called.
    """

    path: Path
    reference: str
    heads: int
    tokens: Tokens
    input_px: int | None
    device: torch.device


class Loaded(NamedTuple):
    """A network from normalised pictures to features, and what its files say of its input."""

    network: Network
    input_px: int | None = None
    mean: Triple | None = None
    std: Triple | None = None


class TokenPooling(nn.Module):
    """A network's tokens, or maps, to one feature per picture.

    Args:
        network: gives (n, token, feature), (n, feature, h, w) or (n, feature).
        prefix: tokens before the picture's, the class token first; 0 where there is none.
        tokens: which of them make the feature.
    """

    def __init__(self, network: nn.Module, prefix: int, tokens: Tokens) -> None:
        super().__init__()
        if tokens != "mean" and prefix == 0:
            raise InputError(f"encoder: tokens={tokens}, and this network has no class token; add ,tokens=mean")
        self.network = network
        self._prefix, self._tokens = prefix, tokens

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of normalised pictures."""
        out = self.network(pixels)
        return pool_tokens(out, self._prefix, self._tokens)


def pool_tokens(out: Tensor, prefix: int, tokens: Tokens) -> Tensor:
    """The class token, the mean of the picture's tokens, or one after the other."""
    if out.ndim == 4:
        return out.mean(dim=(2, 3))
    if out.ndim == 2:
        return out
    parts = {"cls": [out[:, 0]], "mean": [out[:, prefix:].mean(dim=1)]}
    return torch.cat([part for name in tokens.split("+") for part in parts[name]], dim=1)


def load_efficientnet(source: Source) -> Loaded:
    """The packaged network."""
    network = efficientnet.EfficientNetLite0()
    load_state(network.network, state_at(source.path))
    return Loaded(network, mean=efficientnet.MEAN, std=efficientnet.STD)


def load_resnet50(source: Source) -> Loaded:
    """ResNet-50 cut after its third stage; a whole one's weights do."""
    network = TruncatedResNet50()
    load_state(network, state_at(source.path), left=LEFT_OUT)
    return Loaded(network)


def load_vit(source: Source) -> Loaded:
    """A vision transformer by timm's names, without timm."""
    state = state_at(source.path)
    state = {name: value for name, value in state.items() if not name.startswith(("head.", "mask_token"))}
    shape = VitShape.of(state, source.heads, source.input_px or 224)
    with torch.device("meta"):
        network = VisionTransformer(shape)
    network.to_empty(device="cpu")
    load_state(network, state)
    return Loaded(TokenPooling(network, network.prefix, source.tokens))


def load_torchscript(source: Source) -> Loaded:
    """A program of torch: it runs what its author wrote. Its first output is the features (or tokens, or maps)."""
    try:
        with warnings.catch_warnings():
            # torch deprecates writing such files; those that the field has stay readable
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(source.path), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise InputError(
            f"encoder: {source.path.name} is no TorchScript file: {' '.join(str(error).split())[:300]}"
        ) from error
    return Loaded(_First(network, source.tokens))


def load_onnx(source: Source) -> Loaded:
    """A graph, interpreted."""
    network = OnnxNetwork(source.path, source.device)
    return Loaded(lambda pixels: pool_tokens(network(pixels), 1, source.tokens), network.input_px)


def load_hf(source: Source) -> Loaded:
    """A vision network of transformers from a folder; code that lies beside the weights is never run."""
    try:
        import transformers  # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError("encoder: hf: needs transformers; pip install 'milcore[hf]'") from None
    try:
        model = transformers.AutoModel.from_pretrained(
            source.path, trust_remote_code=False, weights_only=True, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"encoder: {source.path} holds no network that transformers can load: {reason}") from error
    has_class = any(name.endswith("cls_token") for name, _ in model.named_parameters())
    prefix = 1 + int(getattr(model.config, "num_register_tokens", 0) or 0) if has_class else 0
    described = _preprocessor(source.path)
    edge = described.get("input_px") or getattr(model.config, "image_size", None)
    network = TokenPooling(_HiddenState(model), prefix, source.tokens)
    return Loaded(network, edge if isinstance(edge, int) else None, described.get("mean"), described.get("std"))


def load_timm(source: Source) -> Loaded:
    """Any network of timm by name, with weights from a file."""
    try:
        import timm  # noqa: PLC0415 - an extra
    except (ImportError, RuntimeError) as error:
        # beside a torchvision of another build the import ends in a RuntimeError
        raise InputError(f"encoder: timm: needs timm ({error}); pip install 'milcore[timm]'") from None
    state = state_at(source.path)
    model = timm.create_model(source.reference, pretrained=False, num_classes=0)
    heads = ("head.", "fc.", "classifier.", "head_dist.")
    load_state(model, {name: value for name, value in state.items() if not name.startswith(heads)})
    described = timm.data.resolve_model_data_config(model)
    network = TokenPooling(_ForwardFeatures(model), int(getattr(model, "num_prefix_tokens", 1)), source.tokens)
    return Loaded(network, described["input_size"][-1], tuple(described["mean"]), tuple(described["std"]))


class _First(nn.Module):
    """The first output of a network that may give several."""

    def __init__(self, network: nn.Module, tokens: Tokens) -> None:
        super().__init__()
        self.network, self._tokens = network, tokens

    def forward(self, pixels: Tensor) -> Tensor:
        out = self.network(pixels)
        first = out[0] if isinstance(out, (tuple, list)) else out
        return pool_tokens(first, 1, self._tokens)


class _HiddenState(nn.Module):
    """The last hidden state of a network of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        hidden: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return hidden


class _ForwardFeatures(nn.Module):
    """A timm network without its head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(pixels)
        return features


def _preprocessor(folder: Path) -> dict[str, Any]:
    """Edge, mean and standard deviation from ``preprocessor_config.json``, as far as it tells them."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return {}
    told = json.loads(file.read_text())
    size = told.get("crop_size") or told.get("size")
    edge = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
    names = {"mean": "image_mean", "std": "image_std"}
    triples = {name: tuple(told[key]) for name, key in names.items() if isinstance(told.get(key), list)}
    return {"input_px": edge, **triples}


LOADERS: dict[str, Callable[[Source], Loaded]] = {
    "efficientnet_lite0": load_efficientnet,
    "resnet50": load_resnet50,
    "vit": load_vit,
    "torchscript": load_torchscript,
    "onnx": load_onnx,
    "timm": load_timm,
    "hf": load_hf,
}
