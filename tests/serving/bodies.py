"""Bodies of requests, and tensors of answers, of the Open Inference Protocol, made by hand."""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

HEADER_LENGTH = "Inference-Header-Content-Length"
TYPES = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "int64": "INT64"}


def json_request(**tensors: np.ndarray) -> bytes:
    inputs = [
        {"name": name, "shape": array.shape, "datatype": TYPES[array.dtype.name], "data": array.tolist()}
        for name, array in tensors.items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def binary_request(parameters: Mapping[str, Any] | None = None, **tensors: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers; all outputs are asked for in binary."""
    inputs = [
        {"name": name, "shape": array.shape, "datatype": TYPES[array.dtype.name],
         "parameters": {"binary_data_size": array.nbytes}}
        for name, array in tensors.items()
    ]  # fmt: skip
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True, **(parameters or {})}}).encode()
    return header + b"".join(array.tobytes() for array in tensors.values()), {HEADER_LENGTH: str(len(header))}


def json_outputs(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {output["name"]: output["data"] for output in values["outputs"]}


def binary_outputs(body: bytes, header_length: str) -> dict[str, list[Any]]:
    """Values of the outputs, all of which are binary."""
    values, rest = json.loads(body[: int(header_length)]), body[int(header_length) :]
    found: dict[str, list[Any]] = {}
    for output in values["outputs"]:
        size = output["parameters"]["binary_data_size"]
        data, rest = rest[:size], rest[size:]
        if output["datatype"] == "BYTES":
            found[output["name"]] = _texts(data)
        else:
            dtype = {"FP64": "<f8", "INT64": "<i8"}[output["datatype"]]
            found[output["name"]] = np.frombuffer(data, dtype).reshape(output["shape"]).tolist()
    assert rest == b""
    return found


def _texts(data: bytes) -> list[str]:
    texts = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        texts.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return texts
