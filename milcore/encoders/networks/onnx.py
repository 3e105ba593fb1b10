"""``onnx:URI``: a network in an ONNX file, run by ONNX Runtime on CPU or CUDA."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milcore.errors import InputError


class OnnxNetwork:
    """Calls an ONNX graph of one picture input; the first output is the features (or tokens, or maps)."""

    def __init__(self, path: Path, device: torch.device) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        if device.type == "cpu":
            # whoever calls brings the threads: each forward pass has one
            options.intra_op_num_threads = options.inter_op_num_threads = 1
        wanted = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        if wanted not in runtime.get_available_providers():
            raise InputError(f"encoder: this ONNX Runtime has no {wanted}; pip install onnxruntime-gpu, or use a CPU")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=[wanted])
        except Exception as error:
            # the runtime's own errors share no base but this
            raise InputError(
                f"encoder: {path.name} is no ONNX network: {' '.join(str(error).split())[:300]}"
            ) from error
        self._input = self._session.get_inputs()[0]

    @property
    def input_px(self) -> int | None:
        """Edge of the picture where the graph fixes it."""
        edge = self._input.shape[-1]
        return edge if isinstance(edge, int) else None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of normalised pictures, on the CPU."""
        values = self._session.run(None, {self._input.name: pixels.cpu().contiguous().numpy()})
        return torch.from_numpy(values[0])


def _runtime() -> Any:
    try:
        import onnxruntime  # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError(
            "encoder: onnx: needs ONNX Runtime; pip install 'milcore[onnx]' (or onnxruntime-gpu)"
        ) from None
    return onnxruntime
