"""Networks in ONNX files, run by ONNX Runtime on CPU or CUDA."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milcore.errors import InputError


class OnnxNetwork:
    """ONNX graph with one image input; the first output is features, tokens or maps."""

    def __init__(self, path: Path, device: torch.device) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        if device.type == "cpu":
            # the caller runs passes in parallel: each has one thread
            options.intra_op_num_threads = options.inter_op_num_threads = 1
        provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        if provider not in runtime.get_available_providers():
            raise InputError(
                f"encoder: expected an ONNX Runtime with {provider}, got one without; pip install onnxruntime-gpu, "
                "or use a CPU"
            )
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:
            # the errors of ONNX Runtime have no other common base
            raise InputError(
                f"encoder: expected an ONNX network, got {path.name} ({' '.join(str(error).split())[:300]}); allowed: "
                "files of torch.onnx.export and its like"
            ) from error
        self._input = self._session.get_inputs()[0]

    @property
    def input_px(self) -> int | None:
        """Edge of the input image, where the graph fixes it."""
        edge = self._input.shape[-1]
        return edge if isinstance(edge, int) else None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of normalised images, on the CPU."""
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
