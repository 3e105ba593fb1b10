"""A frozen encoder, from its spec string to features of patches.

What the spec string says goes before the preset, the preset before what the weights' own files say.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from milcore.encoders.loaders import LOADERS, Loaded, Network, Source
from milcore.encoders.networks.efficientnet import packaged_weights
from milcore.encoders.nvjpeg import nvjpeg
from milcore.encoders.presets import PRESETS, Preset
from milcore.encoders.spec import EncoderSpec, parse_spec
from milcore.encoders.transform import IMAGENET_MEAN, IMAGENET_STD, Transform
from milcore.encoders.weights import digest_of, from_hub, weights_at
from milcore.errors import InputError
from milcore.store.slide_group import SlideGroup

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PROBE_PX = 224


class Made(NamedTuple):
    """An encoder's parts: network, what it is fed, and the digest of its weights."""

    network: Network
    transform: Transform
    weights_digest: str


class FrozenEncoder:
    """Features of patches; safe to call from several threads.

    Args:
        spec: what to load.
        device: where to compute.

    Attributes:
        name: the spec string.
        width: of the features.
        weights_digest: sha256 of the weights' files.
        transform: in words, what a patch goes through, the precision and another decoder included.
        scale: the transform itself, with the um/px it is for.
    """

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        made = make(spec, device)
        self.name = spec.text
        self.weights_digest = made.weights_digest
        self.scale = made.transform
        self._nvjpeg = nvjpeg(spec.text, device) if spec.decode == "nvjpeg" else None
        self.transform = f"{made.transform}; {_pooled(spec)}; {spec.precision}{'; nvJPEG' if self._nvjpeg else ''}"
        self._device = device
        self._network = _placed(made.network, device)
        self._half = _half(spec, made.network)
        self.width = self._probe(spec)

    @torch.inference_mode()
    def __call__(self, patches: UInt8[Tensor, "patch height width 3"]) -> Float[Tensor, "patch feature"]:
        """Features of patches as stored: u1, channels last; on the CPU in fp32."""
        pixels = self.scale(patches.to(self._device, non_blocking=True))
        half = self._half
        with torch.autocast(self._device.type, half or torch.bfloat16, enabled=half is not None):
            features = self._network(pixels.contiguous(memory_format=torch.channels_last))
        return features.float().cpu()

    def decoded(self, slide: SlideGroup, start: int, stop: int) -> UInt8[Tensor, "patch height width 3"]:
        """Patches ``start`` to ``stop`` (exclusive) of a slide, where they were decoded.

        Raises:
            StoreError: they are no JPEG files, and nvJPEG is to decode them.
        """
        if self._nvjpeg is not None:
            return self._nvjpeg(slide.jpegs(start, stop))
        return torch.from_numpy(slide.patches(start, stop))

    def _probe(self, spec: EncoderSpec) -> int:
        """The width, from one blank patch, checked against the preset's."""
        edge = self.scale.input_px or PROBE_PX
        features = self(torch.zeros(1, edge, edge, 3, dtype=torch.uint8))
        if features.ndim != 2 or len(features) != 1:
            raise InputError(f"encoder {spec.text!r}: gives shape {tuple(features.shape)}; allowed: (patch, feature)")
        preset = PRESETS.get(spec.name)
        if preset is not None and spec.tokens is None and features.shape[1] != preset.width:
            raise InputError(
                f"encoder {spec.text!r}: these weights give {features.shape[1]} features, not {preset.width}"
            )
        return features.shape[1]


def make(spec: EncoderSpec, device: torch.device) -> Made:
    """Load an encoder's network and settle what it is fed.

    Raises:
        InputError: there are no such weights, or they are another network's.
    """
    preset = PRESETS.get(spec.name)
    with weights_of(spec) as path:
        source = Source(
            path,
            spec.reference,
            preset.heads if preset else 0,
            spec.tokens or (preset.tokens if preset else "cls"),
            spec.input_px or (preset.input_px if preset else None),
            device,
        )
        loaded = LOADERS[preset.loader if preset else spec.name](source)
        return Made(loaded.network, _transform(spec, preset, loaded), digest_of(path))


def digest_of_spec(text: str) -> str:
    """Digest of the weights that a spec string names, without loading them."""
    with weights_of(parse_spec(text)) as path:
        return digest_of(path)


@contextlib.contextmanager
def weights_of(spec: EncoderSpec) -> Iterator[Path]:
    """The weights' file or folder on the local disk."""
    preset = PRESETS.get(spec.name)
    if spec.uri is not None:
        with weights_at(spec.uri) as path:
            yield path
    elif preset is None:
        repository = f"timm/{spec.reference}" if spec.name == "timm" else spec.reference
        yield from_hub(repository, f"https://huggingface.co/{repository}")
    elif not preset.repository:
        yield packaged_weights()
    elif preset.loader == "torchscript":
        raise InputError(
            f"encoder {spec.text!r}: no file of its authors runs without their code ({preset.page}); "
            f"trace its image tower to TorchScript once, and give {spec.name}@URI"
        )
    else:
        yield from_hub(preset.repository, preset.page)


def scale_of(spec: EncoderSpec) -> Transform:
    """What an encoder is fed, as far as it is known without its weights; their scale is."""
    return _transform(spec, PRESETS.get(spec.name), None)


def _transform(spec: EncoderSpec, preset: Preset | None, loaded: Loaded | None) -> Transform:
    told_px, told_mean, told_std = (loaded.input_px, loaded.mean, loaded.std) if loaded else (None, None, None)
    input_px = spec.input_px or (preset.input_px if preset else told_px)
    if preset is not None and preset.loader != "efficientnet_lite0":
        mean, std = preset.mean, preset.std
    else:
        mean, std = told_mean or IMAGENET_MEAN, told_std or IMAGENET_STD
    mpp = spec.mpp if spec.mpp is not None else (preset.mpp if preset else ())
    area = spec.name == "efficientnet_lite0"
    return Transform(input_px, spec.mean or mean, spec.std or std, "area" if area else "bilinear", mpp)


def _pooled(spec: EncoderSpec) -> str:
    """Which tokens, in words; for networks that have none it changes nothing."""
    preset = PRESETS.get(spec.name)
    return f"tokens {spec.tokens or (preset.tokens if preset else 'cls')}"


def _placed(network: Network, device: torch.device) -> Network:
    if not isinstance(network, nn.Module):
        return network
    frozen = network.eval().requires_grad_(requires_grad=False).to(device)
    # convolutions are about twice as fast on CPUs with the channels last
    return frozen if isinstance(frozen, torch.jit.ScriptModule) else channels_last(frozen)


def channels_last(network: nn.Module) -> nn.Module:
    """The network with the weights of its convolutions in that order."""
    for weights in (each for each in network.parameters() if each.dim() == 4):
        weights.data = weights.data.contiguous(memory_format=torch.channels_last)
    return network


def _half(spec: EncoderSpec, network: Any) -> torch.dtype | None:
    if spec.precision == "fp32":
        return None
    if not isinstance(network, nn.Module):
        raise InputError(f"encoder {spec.text!r}: an ONNX graph has its own precision; export it in {spec.precision}")
    return HALF_TYPES[spec.precision]
