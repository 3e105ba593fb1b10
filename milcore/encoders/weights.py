"""Weights of encoders: local copies, digests and state dicts.

No code of a file is run here: safetensors, or ``torch.load(weights_only=True)``. Only ``torchscript:`` runs code.
"""

import contextlib
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from milcore.errors import InputError
from milcore.runtime import storage
from milcore.runtime.allow_list import check_uri

STATE_FILES = ("model.safetensors", "pytorch_model.bin")
DESCRIPTION_FILES = ("config.json", "preprocessor_config.json")
# of torch and safetensors on damaged bytes, and on other files
_DAMAGE_ERRORS = (
    pickle.UnpicklingError, OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError,
)  # fmt: skip
_STATE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@contextlib.contextmanager
def weights_at(uri: str) -> Iterator[Path]:
    """Local copy of a file or flat folder, within the context.

    Raises:
        InputError: there is nothing at the URI.
    """
    check_uri(uri, "encoder")
    with contextlib.ExitStack() as stack:
        if storage.exists(uri):
            path = stack.enter_context(storage.local_file(uri))
        elif names := storage.names(uri):
            for name in names:  # a file of a local folder may be a link
                check_uri(storage.join(uri, name), "encoder")
            path = stack.enter_context(storage.local_folder(uri))
        else:
            raise InputError(f"encoder: expected a file or folder, got nothing at {uri}; allowed: a path or s3:// URI")
        yield path


def fetch_from_hub(repository: str, page: str) -> Path:
    """Repository of the Hugging Face hub in the local cache, downloaded if needed.

    Raises:
        InputError: the extra is not installed, the hub cannot be reached or the weights are gated.
    """
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - an extra
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "encoder: weights from a hub need huggingface_hub; pip install 'milcore[hf]', or give a copy as NAME@URI"
        ) from None
    try:
        return Path(snapshot_download(repository, allow_patterns=[*STATE_FILES, *DESCRIPTION_FILES]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"encoder: {repository} cannot be fetched from the hub ({reason}); accept its licence at {page} and set "
            "HF_TOKEN, or, where the hub cannot be reached, give a copy of the weights as NAME@URI"
        ) from error


def digest_of(path: Path) -> str:
    """sha256 of a file, or of the description and weights files of a folder.

    That of a folder is over the names and digests of these files.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.iterdir() if file.name in DESCRIPTION_FILES or file.suffix in _STATE_SUFFIXES)
    return hashlib.sha256("".join(f"{file.name} {digest_of(file)}\n" for file in files).encode()).hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """State dict from a file, or from the only weights file of a folder.

    Raises:
        InputError: there is no such file, or it is not a state dict.
    """
    file = path if path.is_file() else _state_file(path)
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (*_DAMAGE_ERRORS, safetensors.SafetensorError) as error:
        raise InputError(
            f"encoder: expected a file of tensors only, got {file.name} ({type(error).__name__}); allowed: safetensors "
            "(best), or a state_dict of torch.save"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"encoder: expected a state_dict of named tensors, got {file.name}; allowed: safetensors (best), "
            "or a file of torch.save"
        )
    return state


def load_state(network: torch.nn.Module, state: dict[str, Tensor], *, ignore: tuple[str, ...] = ()) -> None:
    """Load a state dict into a network.

    Args:
        network: to load into.
        state: tensors by name.
        ignore: prefixes of tensors that the network does not have, such as a classifier.

    Raises:
        InputError: tensors are missing, unexpected or of another shape.
    """
    used = {name: value for name, value in state.items() if not name.startswith(ignore)} if ignore else state
    try:
        network.load_state_dict(used)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"encoder: expected the weights of this network, got others ({reason[:400]}); allowed: a state_dict of its "
            "names and shapes"
        ) from error


def _state_file(folder: Path) -> Path:
    standard = [folder / name for name in STATE_FILES if (folder / name).is_file()]
    files = standard or [file for file in sorted(folder.iterdir()) if file.suffix in _STATE_SUFFIXES]
    if not files or (not standard and len(files) > 1):
        raise InputError(
            f"encoder: expected one file of weights in {folder}, got {len(files)}; allowed: "
            f"{' or '.join(STATE_FILES)}, or one with suffix {', '.join(_STATE_SUFFIXES)}"
        )
    return files[0]
