"""Source with a file of tensors per slide, such as CLAM's ``pt_files``.

A file has a tensor (n, d), or a dict with ``features`` and ``coords``. The one reader that needs torch, imported when a
file is read; nothing in the file is executed (``weights_only``).
"""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from milcore.config import ImportConfig
from milcore.errors import SlideError
from milcore.ingestion.imports.declared_size import archive_problem
from milcore.ingestion.imports.folder import READ_ERRORS, FileContent, FileKind, open_files, positive_number
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

    if path.stat().st_size == 0:
        raise SlideError("empty file (0 bytes)")
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about forms of tensors that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise SlideError(
            "not tensors alone: other objects in a .pt may run code when read; save tensors only"
        ) from None
    except (*READ_ERRORS, zipfile.BadZipFile) as error:
        # not the error's text, which may quote the file
        raise SlideError(f"not readable as tensors ({type(error).__name__})") from None
    parts = content if isinstance(content, dict) else {"features": content}
    features = next((parts[name] for name in FEATURE_KEYS if isinstance(parts.get(name), torch.Tensor)), None)
    if features is None:
        raise SlideError(f"no features in it, but {len(parts)} other entries")
    coords = parts.get("coords")
    corners = _array(coords, "coords") if isinstance(coords, torch.Tensor) else None
    return FileContent(_array(features, "features"), corners, positive_number(parts, "patch_size_level0"), None, None)


def _check_archive(path: Path) -> None:
    """Check what a file of tensors unpacks to.

    Raises:
        SlideError: it is beyond a slide, or a bomb.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            problem = archive_problem(archive)
        if problem is not None:
            raise SlideError(problem)


def _array(tensor: Any, name: str) -> Array:
    """Values of a tensor; floating-point types that numpy lacks as float32.

    Raises:
        SlideError: it has no values of its own for every place.
    """
    forms = {
        "nested": tensor.is_nested,
        "sparse": not tensor.is_nested and str(tensor.layout) != "torch.strided",
        "quantised": tensor.is_quantized,
        "complex": tensor.is_complex(),
    }
    form = next((form for form, applies in forms.items() if applies), None)
    if form is not None:
        raise SlideError(f"{name}: a {form} tensor; allowed: dense numbers; save it with .to_dense() or .dequantize()")
    if tensor.device.type != "cpu":
        raise SlideError(f"{name}: a tensor without values, on the device {tensor.device.type}; save the values")
    declared = tensor.numel() * tensor.element_size()
    if declared > tensor.untyped_storage().nbytes():
        raise SlideError(f"{name}: a view that repeats its values to {declared / 1e9:,.3g} GB; save it after .clone()")
    values = tensor.detach().resolve_neg()
    is_half = values.dtype.is_floating_point and values.element_size() <= 2  # numpy has one of several such types
    return np.asarray(values.float() if is_half else values)
