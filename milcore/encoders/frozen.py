"""Frozen encoder, from its spec string to features of patches.

Settings of the spec string take precedence over the preset, the preset over the files of the weights.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from milcore.config import MAX_ENCODER_INPUT_PX, EncoderRecord
from milcore.encoders.loaders import LOADERS, LoadedNetwork, LoaderInput, Network
from milcore.encoders.networks.efficientnet import packaged_weights
from milcore.encoders.nvjpeg import nvjpeg
from milcore.encoders.precision import warn_of_emulation
from milcore.encoders.presets import PRESETS, Preset
from milcore.encoders.spec import EncoderSpec, parse_spec
from milcore.encoders.transform import IMAGENET_MEAN, IMAGENET_STD, Transform
from milcore.encoders.weights import digest_of, fetch_from_hub, weights_at
from milcore.errors import InputError
from milcore.store.slide_group import SlideGroup

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PROBE_PX = 224


class EncoderParts(NamedTuple):
    """Network, input transform and digest of the weights of an encoder."""

    network: Network
    transform: Transform
    weights_digest: str


class FrozenEncoder:
    """Features of patches; safe to call from several threads.

    Args:
        spec: of the encoder.
        device: to compute on.

    Attributes:
        name: the spec string.
        width: of the features.
        weights_digest: sha256 of the weights' files.
        transform: from stored patches to the network's input, with the um/px of the encoder.
        transform_text: description of all that changes a feature: transform, tokens, precision and decoder.
    """

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        warn_of_emulation(spec.precision, device)
        parts = load_parts(spec, device)
        self.name = spec.text
        self.weights_digest = parts.weights_digest
        self.transform = parts.transform
        self._nvjpeg = nvjpeg(spec.text, device) if spec.decode == "nvjpeg" else None
        self.transform_text = (
            f"{parts.transform}; {_describe_tokens(spec)}; {spec.precision}{'; nvJPEG' if self._nvjpeg else ''}"
        )
        self._device = device
        self._network = _place(parts.network, device)
        self._half = _half_type(spec, parts.network)
        self.width = self._probe(spec)

    @property
    def record(self) -> EncoderRecord:
        """The encoder as features and runs record it."""
        return EncoderRecord(encoder=self.name, weights_digest=self.weights_digest, transform=self.transform_text)

    @torch.inference_mode()
    def __call__(self, patches: UInt8[Tensor, "patch height width 3"]) -> Float[Tensor, "patch feature"]:
        """Features of patches as stored: u1, channels last; on the CPU in fp32."""
        pixels = self.transform(patches.to(self._device, non_blocking=True))
        half = self._half
        with torch.autocast(self._device.type, half or torch.bfloat16, enabled=half is not None):
            features = self._network(pixels.contiguous(memory_format=torch.channels_last))
        return features.float().cpu()

    def decode(self, slide: SlideGroup, start: int, stop: int) -> UInt8[Tensor, "patch height width 3"]:
        """Decode patches ``start`` to ``stop`` (exclusive) of a slide.

        They are on the GPU with nvJPEG, else on the CPU.

        Raises:
            StoreError: the patches are not JPEG files and nvJPEG is to decode them.
        """
        if self._nvjpeg is not None:
            return self._nvjpeg(slide.jpegs(start, stop))
        return torch.from_numpy(slide.patches(start, stop))

    def _probe(self, spec: EncoderSpec) -> int:
        """Feature width, from one blank patch, checked against the preset."""
        edge = self.transform.input_px or PROBE_PX
        features = self(torch.zeros(1, edge, edge, 3, dtype=torch.uint8))
        if features.ndim != 2 or len(features) != 1:
            raise InputError(
                f"encoder {spec.text!r}: expected a feature vector per patch, got shape {tuple(features.shape)} for "
                "one patch; allowed: (1, features)"
            )
        preset = PRESETS.get(spec.name)
        if preset is not None and spec.tokens is None and features.shape[1] != preset.width:
            raise InputError(
                f"encoder {spec.text!r}: expected {preset.width} features, got {features.shape[1]}; allowed: the "
                f"weights of {spec.name}"
            )
        return features.shape[1]


def load_parts(spec: EncoderSpec, device: torch.device) -> EncoderParts:
    """Load the network of an encoder and resolve its input transform.

    Raises:
        InputError: the weights are not found, or are those of another network.
    """
    preset = PRESETS.get(spec.name)
    with weights_of(spec) as path:
        inputs = LoaderInput(
            path,
            spec.reference,
            preset.heads if preset else 0,
            spec.tokens or (preset.tokens if preset else "cls"),
            spec.input_px or (preset.input_px if preset else None),
            device,
        )
        loaded = LOADERS[preset.loader if preset else spec.name](inputs)
        return EncoderParts(loaded.network, _transform(spec, preset, loaded), digest_of(path))


def digest_of_spec(text: str) -> str:
    """Digest of the weights of a spec string, without loading them."""
    with weights_of(parse_spec(text)) as path:
        return digest_of(path)


@contextlib.contextmanager
def weights_of(spec: EncoderSpec) -> Iterator[Path]:
    """File or folder of the weights on the local disk, within the context."""
    preset = PRESETS.get(spec.name)
    if spec.uri is not None:
        with weights_at(spec.uri) as path:
            yield path
    elif preset is None:
        repository = f"timm/{spec.reference}" if spec.name == "timm" else spec.reference
        yield fetch_from_hub(repository, f"https://huggingface.co/{repository}")
    elif not preset.repository:
        yield packaged_weights()
    elif preset.loader == "torchscript":
        raise InputError(
            f"encoder {spec.text!r}: the authors' weights need their own code ({preset.page}); "
            f"trace its image tower to TorchScript once, and give {spec.name}@URI"
        )
    else:
        yield fetch_from_hub(preset.repository, preset.page)


def transform_of(spec: EncoderSpec) -> Transform:
    """Input transform of an encoder, without loading its weights.

    um/px are always known; the input size and normalisation may be given by the files of the weights only.
    """
    return _transform(spec, PRESETS.get(spec.name), None)


def _transform(spec: EncoderSpec, preset: Preset | None, loaded: LoadedNetwork | None) -> Transform:
    file_px, file_mean, file_std = (loaded.input_px, loaded.mean, loaded.std) if loaded else (None, None, None)
    input_px = spec.input_px or (preset.input_px if preset else file_px)
    if input_px is not None and input_px > MAX_ENCODER_INPUT_PX:
        raise InputError(
            f"encoder {spec.text!r}: input_px: expected px of a network's input, got {input_px:,}; allowed: up to "
            f"{MAX_ENCODER_INPUT_PX:,}"
        )
    if preset is not None and preset.loader != "efficientnet_lite0":
        mean, std = preset.mean, preset.std
    else:
        mean, std = file_mean or IMAGENET_MEAN, file_std or IMAGENET_STD
    mpp = spec.mpp if spec.mpp is not None else (preset.mpp if preset else ())
    resample: Literal["area", "bilinear"] = "area" if spec.name == "efficientnet_lite0" else "bilinear"
    return Transform(input_px, spec.mean or mean, spec.std or std, resample, mpp)


def _describe_tokens(spec: EncoderSpec) -> str:
    """Description of the pooled tokens; without effect for networks without tokens."""
    preset = PRESETS.get(spec.name)
    return f"tokens {spec.tokens or (preset.tokens if preset else 'cls')}"


def _place(network: Network, device: torch.device) -> Network:
    if not isinstance(network, nn.Module):
        return network
    frozen = network.eval().requires_grad_(requires_grad=False).to(device)
    # convolutions are about twice as fast on CPUs with the channels last
    return frozen if isinstance(frozen, torch.jit.ScriptModule) else channels_last(frozen)


def channels_last(network: nn.Module) -> nn.Module:
    """The network with its convolution weights in channels-last memory order."""
    for weights in (parameter for parameter in network.parameters() if parameter.dim() == 4):
        weights.data = weights.data.contiguous(memory_format=torch.channels_last)
    return network


def _half_type(spec: EncoderSpec, network: Any) -> torch.dtype | None:
    if spec.precision == "fp32":
        return None
    if not isinstance(network, nn.Module):
        raise InputError(
            f"encoder {spec.text!r}: precision: expected that of the ONNX graph, which is fixed, got {spec.precision}; "
            f"allowed: fp32; export it in {spec.precision}"
        )
    return HALF_TYPES[spec.precision]
