"""Open Inference Protocol v2 with the binary tensor extension: requests and answers.

Source: https://github.com/kserve/open-inference-protocol and the extension "binary tensor data" of Triton and KServe.
A bag is the tensor ``features`` (instance, feature), FP16 or FP32, and may have ``coords`` (instance, 2). Binary values
are little-endian, row by row, behind the JSON whose length the header Inference-Header-Content-Length says.
"""

import json
import math
import struct
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeInt

from milcore.config import Config, parse_config
from milcore.errors import InputError
from milcore.serving.bag_request import COORDS, FEATURES, BagRequest, number_array, parse_object
from milcore.serving.score import Score
from milcore.serving.served_model import ServedModel

HEADER_LENGTH = "Inference-Header-Content-Length"
TYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
FEATURE_TYPES = ("FP16", "FP32")
INDEX, WEIGHT, TOP_COORDS = "attention_instance", "attention_weight", "attention_coords"
# an answer has those of attention beside the columns of the model
ATTENTION_OUTPUTS = {INDEX: ("INT64", [-1]), WEIGHT: ("FP64", [-1]), TOP_COORDS: ("FP64", [-1, 2])}

Parameters = dict[str, Any]
DataType = Literal["FP16", "FP32", "FP64", "INT32", "INT64"]


class RequestTensor(Config):
    """Input of a request."""

    name: str
    shape: tuple[NonNegativeInt, ...]
    datatype: DataType
    parameters: Parameters = Field(default_factory=dict)
    data: Any = None


class RequestOutput(Config):
    """Output that a request names."""

    name: str
    parameters: Parameters = Field(default_factory=dict)


class InferenceRequest(Config):
    """JSON of a request."""

    id: str | None = None
    parameters: Parameters = Field(default_factory=dict)
    inputs: tuple[RequestTensor, ...]
    outputs: tuple[RequestOutput, ...] = ()


class Inference(NamedTuple):
    """Request of the protocol.

    Args:
        bag: to score.
        request: its JSON.
    """

    bag: BagRequest
    request: InferenceRequest


class Answer(NamedTuple):
    """Body of an answer, and its HTTP headers."""

    body: bytes
    headers: dict[str, str]


def server_metadata(version: str) -> dict[str, Any]:
    """Metadata of the server."""
    return {"name": "milcore", "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """Metadata of a model.

    ``coords`` need not be given, and ``attention_coords`` comes with them alone.
    """
    inputs = [(FEATURES, "FP32", [-1, model.features]), (COORDS, "FP64", [-1, 2])]
    outputs = [
        *((name, datatype, [1]) for name, datatype in model.columns.items()),
        *((name, datatype, shape) for name, (datatype, shape) in ATTENTION_OUTPUTS.items()),
    ]
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "milcore_torch",
        "inputs": [_tensor(*each) for each in inputs],
        "outputs": [_tensor(*each) for each in outputs],
        "parameters": _parameters(model),
    }


def _tensor(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def _parameters(model: ServedModel) -> Parameters:
    return {
        "models_sha256": model.models_sha256,
        "encoder": model.encoder_name or "",
        "notice": model.summary["notice"],
    }


def parse_inference(body: bytearray, header_length: str | None) -> Inference:
    """Parse a request.

    Args:
        body: JSON, with binary values behind it.
        header_length: length of the JSON; None: all is JSON.

    Raises:
        InputError: it is no request of a bag.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    view = memoryview(body)
    request = parse_config(InferenceRequest, parse_object(view[:length]))
    arrays: dict[str, np.ndarray] = {}
    for tensor in request.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            arrays[tensor.name] = _of_json(tensor)
            continue
        stop = length + _size(tensor, size, len(body) - length)
        arrays[tensor.name] = np.frombuffer(view[length:stop], TYPES[tensor.datatype]).reshape(tensor.shape)
        length = stop
    if length != len(body):
        raise InputError(f"body: expected {length} bytes as the inputs say, got {len(body)}; send no others")
    return Inference(_bag(request, arrays), request)


def _length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most):
        raise InputError(f"{HEADER_LENGTH}: expected the bytes of the JSON, at most {most} of the body, got {text!r}")
    return int(text)


def _size(tensor: RequestTensor, size: object, most: int) -> int:
    """Bytes of a binary tensor."""
    expected = math.prod(tensor.shape) * np.dtype(TYPES[tensor.datatype]).itemsize
    if size != expected or isinstance(size, bool) or expected > most:
        raise InputError(
            f"{tensor.name}: expected {expected} bytes of {tensor.datatype} {list(tensor.shape)}, got binary_data_size "
            f"{size!r} of {most} bytes behind the JSON; is {HEADER_LENGTH} set?"
        )
    if tensor.data is not None:
        raise InputError(f"{tensor.name}: expected binary values or data, got both; send one")
    return expected


def _of_json(tensor: RequestTensor) -> np.ndarray:
    if tensor.data is None:
        raise InputError(f"{tensor.name}: expected data or binary_data_size, got neither; send the values")
    values = number_array(tensor.name, tensor.data, TYPES[tensor.datatype])
    if values.size != math.prod(tensor.shape):
        raise InputError(
            f"{tensor.name}: expected {math.prod(tensor.shape)} values of shape {list(tensor.shape)}, got {values.size}"
        )
    return values.reshape(tensor.shape)


def _bag(request: InferenceRequest, arrays: dict[str, np.ndarray]) -> BagRequest:
    names = [tensor.name for tensor in request.inputs]
    if FEATURES not in names or set(names) - {FEATURES, COORDS} or len(names) > len(arrays):
        raise InputError(f"inputs: expected {FEATURES}, and {COORDS} or none, got {', '.join(names) or 'none'}")
    (features,) = (tensor for tensor in request.inputs if tensor.name == FEATURES)
    if features.datatype not in FEATURE_TYPES:
        raise InputError(
            f"{FEATURES}: expected floating-point numbers, got {features.datatype}; allowed: {', '.join(FEATURE_TYPES)}"
        )
    count, encoder = (request.parameters.get(name) for name in ("attention_instances", "encoder"))
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
        raise InputError(f"attention_instances: expected a number of instances, got {count!r}; allowed: 0, 1, …")
    if encoder is not None and not isinstance(encoder, str):
        raise InputError(f"encoder: expected a text, got {encoder!r}")
    # behind a JSON of any length binary values may lie at odd places, where no thread of torch may read them
    aligned = np.require(arrays[FEATURES], requirements="A")
    return BagRequest(aligned, arrays.get(COORDS), count, encoder)


def inference_answer(model: ServedModel, inference: Inference, score: Score) -> Answer:
    """Answer to a request: all outputs, or those that it names.

    ``check_outputs`` has checked these names.
    """
    values = _outputs(model, inference.bag, score)
    request = inference.request
    wanted = {output.name: output for output in request.outputs} or dict.fromkeys(values)
    all_binary = request.parameters.get("binary_data_output") is True
    outputs, behind = [], []
    for name, output in wanted.items():
        datatype, array = values[name]
        tensor = _tensor(name, datatype, list(np.shape(array)))
        is_binary = all_binary if output is None else output.parameters.get("binary_data", all_binary) is True
        if is_binary:
            data = _to_bytes(datatype, array)
            behind.append(data)
            tensor["parameters"] = {"binary_data_size": len(data)}
        else:
            tensor["data"] = np.ravel(array).tolist()
        outputs.append(tensor)
    answer: dict[str, Any] = {
        "model_name": model.name,
        "model_version": model.version,
        "parameters": {**_parameters(model), "same_encoder": inference.bag.encoder is None},
        "outputs": outputs,
    }
    if request.id is not None:
        answer["id"] = request.id
    header = json.dumps(answer, allow_nan=False).encode()
    if not behind:
        return Answer(header, {"Content-Type": "application/json"})
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return Answer(b"".join([header, *behind]), headers)


def check_outputs(model: ServedModel, inference: Inference) -> None:
    """Check the names of the outputs before the bag is scored.

    Raises:
        InputError: there is no such output.
    """
    allowed = [*model.columns, INDEX, WEIGHT, *([] if inference.bag.coords is None else [TOP_COORDS])]
    for output in inference.request.outputs:
        if output.name not in allowed:
            raise InputError(
                f"outputs: expected outputs of the model, got {output.name!r}; allowed: {', '.join(allowed)}"
            )


def _outputs(model: ServedModel, bag: BagRequest, score: Score) -> dict[str, tuple[str, np.ndarray]]:
    """Type and values of each output."""
    values = {name: (datatype, np.array([score.columns[name]])) for name, datatype in model.columns.items()}
    values[INDEX] = ("INT64", np.array(score.instances, np.int64))
    values[WEIGHT] = ("FP64", np.array(score.weights, np.float64))
    if bag.coords is not None:
        values[TOP_COORDS] = ("FP64", bag.coords[score.instances].astype(np.float64).reshape(-1, 2))
    return values


def _to_bytes(datatype: str, array: np.ndarray) -> bytes:
    if datatype != "BYTES":
        return array.astype(TYPES[datatype]).tobytes()
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in array.tolist())
