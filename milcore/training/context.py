"""The training context: the seam between the loop and its launcher."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from milcore.runtime import storage
from milcore.runtime.progress import EpochObserver, log_line
from milcore.training.checkpoints import is_whole

CHECKPOINTS_KEPT = 2


class TrainContext(Protocol):
    """The seam between the loop and whatever runs it."""

    rank: int
    world_size: int
    device: torch.device

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Take an epoch's figures and, on rank 0 now and then, a folder to keep; every rank calls it equally often."""
        ...

    def restore(self) -> contextlib.AbstractContextManager[Path | None]:
        """The newest checkpoint as a local folder, or None."""
        ...


class LocalContext:
    """One worker in this process.

    Args:
        checkpoints_uri: where checkpoints go; None keeps none.
        watch: is shown epochs as they end; None is silent.
    """

    rank = 0
    world_size = 1

    def __init__(self, checkpoints_uri: str | None, device: torch.device, watch: EpochObserver | None = None) -> None:
        self.device = device
        self._uri = checkpoints_uri
        self._watch = watch

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Show the epoch, keep the checkpoint and drop older ones."""
        if self._watch is not None:
            self._watch.show(epoch, metrics)
        if checkpoint is None or self._uri is None:
            return
        if keep_checkpoint(checkpoint, storage.join(self._uri, f"{epoch:04d}")):
            for name in checkpoint_names(self._uri)[:-CHECKPOINTS_KEPT]:
                storage.remove(storage.join(self._uri, name))

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """The newest checkpoint that is whole."""
        for name in reversed(checkpoint_names(self._uri) if self._uri is not None else []):
            with storage.local_folder(storage.join(str(self._uri), name)) as folder:
                if is_whole(folder):
                    yield folder
                    return
                log_line(f"checkpoint {name} is not whole; looking for an older one")
        yield None


def sum_over_ranks(values: Tensor, ctx: TrainContext) -> Tensor:
    """Sum a tensor over the ranks, in place where there are several."""
    if ctx.world_size > 1:
        dist.all_reduce(values)
    return values


def checkpoint_names(uri: str) -> list[str]:
    """Names of the checkpoint folders, oldest first; Ray's marker files lie beside them."""
    return [name for name in storage.names(uri) if name.isdigit()]


def keep_checkpoint(folder: Path, uri: str) -> bool:
    """Copy a checkpoint to its place; whether that went well.

    Training can go on without it, and storage that is full or away now may not be so at the next one.
    """
    try:
        storage.upload_folder(folder, uri)
    except storage.IO_ERRORS as error:
        log_line(f"no checkpoint at {uri}: {error}; training goes on from memory")
        return False
    return True
