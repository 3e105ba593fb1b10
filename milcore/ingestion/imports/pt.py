"""Source with a file of tensors per slide, such as CLAM's ``pt_files``.

A file has a tensor (n, d), or a dict with ``features`` and ``coords``. The one reader that needs torch, imported when a
file is read; nothing in the file is executed (``weights_only``).
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from milcore.config import ImportConfig
from milcore.errors import SlideError
from milcore.ingestion.imports.folder import FileContent, FileKind, open_files
from milcore.ingestion.imports.source import Array, Source

FEATURE_KEYS = ("features", "feats")


def open_pt(uri: str, config: ImportConfig) -> Source:
    """Source of a folder of ``<slide_id>.pt``, or of CLAM's folder around ``pt_files``.

    Raises:
        InputError: the labels cannot be read, or there is no such file at all.
    """
    return open_files(uri, config, FileKind((".pt", ".pth"), "pt_files", read_pt))


def read_pt(path: Path) -> FileContent:
    """Read features and coords of one file.

    Raises:
        SlideError: it is no file of tensors, is truncated, or has no features.
    """
    import torch  # noqa: PLC0415 - takes seconds, and no other format needs it

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise SlideError(
            "not tensors alone: other objects in a .pt may run code when read; save tensors only"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError) as error:
        # not the error's text, which may quote the file
        raise SlideError(f"not readable as tensors ({type(error).__name__})") from None
    parts = content if isinstance(content, dict) else {"features": content}
    features = next((parts[name] for name in FEATURE_KEYS if isinstance(parts.get(name), torch.Tensor)), None)
    if features is None:
        raise SlideError(f"no features in it, but {len(parts)} other entries")
    coords = parts.get("coords")
    edge = parts.get("patch_size_level0")
    edge = float(edge) if isinstance(edge, (int, float)) and edge > 0 else None
    corners = _array(coords) if isinstance(coords, torch.Tensor) else None
    return FileContent(_array(features), corners, edge, None, None)


def _array(tensor: Any) -> Array:
    """Values of a tensor; bfloat16, which numpy lacks, as float32."""
    values = tensor.detach()
    return np.asarray(values.float() if str(values.dtype) == "torch.bfloat16" else values)
