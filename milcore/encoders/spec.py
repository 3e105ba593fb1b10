"""Spec strings of frozen encoders: network, location of the weights and options.

::

    NAME                         a row of PRESETS, its weights from the authors' hub, or packaged
    NAME@URI                     the same from a copy: a file or folder, local or s3://
    torchscript:URI  onnx:URI    a file with network and weights
    timm:NAME[@URI]              any network of timm; the weights from its hub, or a file of them
    hf:NAME_OR_URI               any vision network of transformers: a folder with config.json and model.safetensors

    …,key=value,…                over the preset's or the file's: input_px=224  mpp=0.5 (or any)  mean=0.5/0.5/0.5
                                 std=0.5/0.5/0.5  tokens=cls (mean, cls+mean)  precision=fp32 (bf16, fp16)
                                 decode=cpu (nvjpeg: stored JPEGs on the GPU)

Everything that changes a feature is in this one string: the same string gives the same features.
"""

import re
from typing import Literal, NamedTuple, TypeVar, get_args

from milcore.config import EncoderKind, EncoderName
from milcore.errors import InputError

Tokens = Literal["cls", "mean", "cls+mean"]
EncodePrecision = Literal["fp32", "bf16", "fp16"]
Decoder = Literal["cpu", "nvjpeg"]
Triple = tuple[float, float, float]

OPTIONS = ("input_px", "mpp", "mean", "std", "tokens", "precision", "decode")
NAMES: tuple[str, ...] = get_args(EncoderName)
KINDS: tuple[str, ...] = get_args(EncoderKind)
_OPTION = re.compile(r",(?=(?:\w+)=)")
_FILE_KINDS = ("torchscript", "onnx")

T = TypeVar("T")


class EncoderSpec(NamedTuple):
    """Parsed spec string; None leaves a setting to the preset or the file.

    Args:
        text: the string.
        name: a row of PRESETS or a kind.
        reference: text after the colon of the kind, where it is not a URI.
        uri: of the weights; None for the authors' hub, or the package.
        input_px: edge of the network's input.
        mpp: um/px that the encoder was trained at; empty for any.
        mean: of the channels, in 0 to 1.
        std: of the channels, in 0 to 1.
        tokens: output tokens that make the feature.
        precision: of the forward pass.
        decode: decoder of the stored patches.
    """

    text: str
    name: str
    reference: str
    uri: str | None
    input_px: int | None
    mpp: tuple[float, ...] | None
    mean: Triple | None
    std: Triple | None
    tokens: Tokens | None
    precision: EncodePrecision
    decode: Decoder

    @property
    def is_bare_name(self) -> bool:
        """True for a name without options or URI, which may name features."""
        return self.text in NAMES


def parse_spec(text: str) -> EncoderSpec:
    """Parse a spec string.

    Raises:
        InputError: the encoder or an option is unknown, or the URI is missing.
    """
    head, *pairs = _OPTION.split(text)
    name, reference, uri = _source(head)
    options = dict(pair.split("=", 1) for pair in pairs)
    unknown = sorted(options.keys() - set(OPTIONS))
    if unknown:
        raise InputError(
            f"encoder {text!r}: expected known options, got {', '.join(unknown)}; allowed: {', '.join(OPTIONS)}"
        )
    return EncoderSpec(
        text,
        name,
        reference,
        uri,
        _pixels(options.get("input_px")),
        _mpp(options.get("mpp")),
        _triple("mean", options.get("mean")),
        _triple("std", options.get("std")),
        _one_of("tokens", options.get("tokens"), Tokens, None),
        _one_of("precision", options.get("precision"), EncodePrecision, "fp32"),
        _one_of("decode", options.get("decode"), Decoder, "cpu"),
    )


def _source(head: str) -> tuple[str, str, str | None]:
    """Name, reference and URI, from the part before the options."""
    kind, colon, reference = head.partition(":")
    if colon and kind in KINDS:
        return _source_of_kind(kind, reference)
    name, at, uri = head.partition("@")
    if name not in NAMES or (at and not uri):
        raise InputError(
            f"encoder: expected an encoder, got {head!r}; allowed: a name ({', '.join(NAMES)}), NAME@URI for a copy "
            f"of its weights, or {', '.join(f'{kind}:…' for kind in KINDS)}"
        )
    return name, "", uri or None


def _source_of_kind(kind: str, reference: str) -> tuple[str, str, str | None]:
    if not reference:
        raise InputError(f"encoder: expected the weights of {kind}, got {kind!r} alone; allowed: {kind}:{_FORMS[kind]}")
    if kind in _FILE_KINDS:
        return kind, "", reference
    if kind == "timm":
        name, _, uri = reference.partition("@")
        return kind, name, uri or None
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", reference) is not None
    return (kind, reference, None) if is_hub_name else (kind, "", reference)


_FORMS = {"torchscript": "URI", "onnx": "URI", "timm": "NAME[@URI]", "hf": "NAME_OR_URI"}


def _pixels(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or int(text) == 0:
        raise InputError(f"encoder: input_px: expected a whole number of px above 0, got {text!r}; allowed: 1, 2, …")
    return int(text)


def _mpp(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    return () if text == "any" else _numbers("mpp", text)


def _triple(name: str, text: str | None) -> Triple | None:
    if text is None:
        return None
    values = _numbers(name, text)
    if len(values) != 3:
        raise InputError(
            f"encoder: {name}: expected three numbers of red/green/blue, got {text!r}; allowed: 0 to 1, such as "
            "0.5/0.5/0.5"
        )
    return values[0], values[1], values[2]


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split("/"))
    except ValueError:
        values = ()
    if not values or min(values) < 0.0 or (name != "mean" and min(values) == 0.0):
        least = "0 and above" if name == "mean" else "above 0"
        raise InputError(f"encoder: {name}: expected numbers separated by slashes, got {text!r}; allowed: {least}")
    return values


def _one_of(name: str, text: str | None, literal: object, default: T) -> T:
    allowed = get_args(literal)
    if text is None:
        return default
    if text not in allowed:
        raise InputError(f"encoder: {name}: expected a known value, got {text!r}; allowed: {', '.join(allowed)}")
    return text  # type: ignore[return-value]
