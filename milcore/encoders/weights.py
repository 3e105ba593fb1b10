"""Weights on the local disk, from a URI or their authors' hub, and the digest that names them.

Nothing here runs what a file holds: safetensors, or ``torch.load(weights_only=True)``. Only ``torchscript:`` does.
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

STATE_FILES = ("model.safetensors", "pytorch_model.bin")
DESCRIBING = ("config.json", "preprocessor_config.json")
_STATE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@contextlib.contextmanager
def weights_at(uri: str) -> Iterator[Path]:
    """A file, or a flat folder, on the local disk for the length of the context.

    Raises:
        InputError: there is nothing at the URI.
    """
    with contextlib.ExitStack() as stack:
        try:
            if storage.exists(uri):
                path = stack.enter_context(storage.local_file(uri))
            elif storage.names(uri):
                path = stack.enter_context(storage.local_folder(uri))
            else:
                raise InputError(f"encoder: nothing at {uri}; allowed: a file or folder, a path or s3:// URI")
        except storage.IO_ERRORS as error:
            raise InputError(f"encoder: {uri} cannot be read: {error}") from error
        yield path


def from_hub(repository: str, page: str) -> Path:
    """A hub's repository in the local cache, fetched if it is not there.

    Raises:
        InputError: the extra is not installed, the hub is out of reach or the weights are gated.
    """
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - an extra
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "encoder: weights from a hub need huggingface_hub; pip install 'milcore[hf]', or give a copy as NAME@URI"
        ) from None
    try:
        return Path(snapshot_download(repository, allow_patterns=[*STATE_FILES, *DESCRIBING]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"encoder: {repository} cannot be fetched from the hub ({reason}); accept its licence at {page} and set "
            "HF_TOKEN, or, where the hub is out of reach, give a copy of the weights as NAME@URI"
        ) from error


def digest_of(path: Path) -> str:
    """sha256 of a file; of a folder, over the names and digests of what describes and holds the network."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.iterdir() if file.name in DESCRIBING or file.suffix in _STATE_SUFFIXES)
    return hashlib.sha256("".join(f"{file.name} {digest_of(file)}\n" for file in files).encode()).hexdigest()


def state_at(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the one file of weights in a folder.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    file = path if path.is_file() else _state_file(path)
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"encoder: {file.name} cannot be read as tensors alone: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"encoder: {file.name} is not a state_dict; allowed: a file of named tensors (safetensors best)"
        )
    return state


def load_state(network: torch.nn.Module, state: dict[str, Tensor], *, left: tuple[str, ...] = ()) -> None:
    """Put tensors into a network, name by name.

    Args:
        network: that they are for.
        state: as read.
        left: prefixes of tensors that the network has no use for, a classifier say.

    Raises:
        InputError: some are missing or over, or of another shape.
    """
    wanted = {name: value for name, value in state.items() if not name.startswith(left)} if left else state
    try:
        network.load_state_dict(wanted)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"encoder: the weights are not this network's: {reason[:400]}") from error


def _state_file(folder: Path) -> Path:
    named = [folder / name for name in STATE_FILES if (folder / name).is_file()]
    found = named or [file for file in sorted(folder.iterdir()) if file.suffix in _STATE_SUFFIXES]
    if not found or (not named and len(found) > 1):
        raise InputError(
            f"encoder: {len(found)} files of weights in {folder}; allowed: {' or '.join(STATE_FILES)}, or one with "
            f"suffix {', '.join(_STATE_SUFFIXES)}"
        )
    return found[0]
