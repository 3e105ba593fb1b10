"""Bag of features in a request, and its plain JSON form."""

import json
from typing import Any, NamedTuple

import numpy as np
from pydantic import NonNegativeInt

from milcore.config import Config, parse_config
from milcore.errors import InputError
from milcore.serving.score import Score
from milcore.serving.served_model import ServedModel

FEATURES, COORDS = "features", "coords"


class BagRequest(NamedTuple):
    """Bag to score.

    Args:
        features: (instance, feature), float16 or float32.
        coords: (instance, 2) x and y, repeated in the answer, and read by some poolings; None: none are given.
        attention_instances: that the answer names; None: as many as the service's settings say.
        encoder: what made the features: digest of weights, or the text of an import; None: the client vouches that it
            is the run's.
    """

    features: np.ndarray
    coords: np.ndarray | None = None
    attention_instances: int | None = None
    encoder: str | None = None


class PlainRequest(Config):
    """Body of a plain JSON request."""

    features: Any
    coords: Any = None
    attention_instances: NonNegativeInt | None = None
    encoder: str | None = None


def parse_object(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        InputError: it is none.
    """
    try:
        values = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise InputError(f"body: expected a JSON object, got other bytes ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"body: expected a JSON object, got a {type(values).__name__}")
    return values


def parse_plain(body: bytes | bytearray) -> BagRequest:
    """Bag of a plain JSON request.

    Raises:
        InputError: the body is none.
    """
    request = parse_config(PlainRequest, parse_object(body))
    coords = None if request.coords is None else number_array(COORDS, request.coords, "f8")
    features = number_array(FEATURES, request.features, "f4")
    return BagRequest(features, coords, request.attention_instances, request.encoder)


def number_array(name: str, values: object, dtype: str) -> np.ndarray:
    """Array of nested lists of numbers.

    Args:
        name: of the values, in errors.
        values: nested lists.
        dtype: of the array.

    Raises:
        InputError: they are none.
    """
    try:
        numbers = np.asarray(values)
    except ValueError:
        raise InputError(f"{name}: expected lists of numbers, got rows of several lengths") from None
    if numbers.dtype.kind not in "fiu":
        raise InputError(f"{name}: expected lists of numbers, got other values among them")
    with np.errstate(over="ignore"):  # infinity, which is refused where all values are checked
        return numbers.astype(dtype)


def check_bag(model: ServedModel, bag: BagRequest) -> None:
    """Check that a model can score a bag, by shapes and encoder.

    Its values are checked where it is scored.

    Raises:
        InputError: features or coordinates have another shape, or the features are of another encoder.
    """
    shape = bag.features.shape
    if len(shape) != 2 or shape[0] < 1 or shape[1] != model.features:
        raise InputError(
            f"{FEATURES}: expected shape (n, {model.features}) with n from 1, got {shape}; allowed: a row for each "
            "instance"
        )
    if model.is_placed and bag.coords is None:
        raise InputError(
            f"{COORDS}: expected those of every instance, whose places the pooling reads, got none; send them"
        )
    if bag.coords is not None and not np.isfinite(bag.coords).all():
        raise InputError(f"{COORDS}: expected finite numbers, got others; allowed: x and y of each instance")
    if bag.coords is not None and bag.coords.shape != (shape[0], 2):
        raise InputError(
            f"{COORDS}: expected shape ({shape[0]}, 2), got {bag.coords.shape}; allowed: x and y of each instance, or "
            "none"
        )
    if bag.encoder not in {None, model.encoder_name}:
        raise InputError(
            f"encoder: expected that of the run's features, {model.encoder_name or 'which is not recorded'}, got "
            f"{bag.encoder!r}; allowed: the same text, or none where you know that it is; encode by that encoder"
        )


def plain_answer(model: ServedModel, bag: BagRequest, score: Score) -> dict[str, Any]:
    """Answer to a plain request.

    It has what ``milcore predict`` gives for a slide, and digests.
    """
    attention: list[dict[str, Any]] = [
        {"instance": instance, "weight": weight}
        for instance, weight in zip(score.instances, score.weights, strict=True)
    ]
    if bag.coords is not None:
        for row in attention:
            row[COORDS] = bag.coords[row["instance"]].tolist()
    return {
        "status": "ok", "reason": None, "prediction": score.columns, "patches": len(bag.features),
        "attention": attention, "same_encoder": bag.encoder is None, **model.metadata(),
    }  # fmt: skip
