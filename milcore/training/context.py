"""The training context: the interface between the loop and its launcher."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from milcore.runtime import storage
from milcore.runtime.progress import EpochObserver, log_line
from milcore.training.checkpoints import is_intact

CHECKPOINTS_KEPT = 2


class TrainContext(Protocol):
    """Interface between the training loop and its launcher.

    ``workers_here`` is the number of workers that share the memory of this process.
    """

    rank: int
    world_size: int
    workers_here: int
    device: torch.device

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Report the metrics of an epoch; every rank calls it after every epoch.

        Args:
            epoch: from 0.
            metrics: named ``<split>_<metric>``.
            checkpoint: a folder to keep, on rank 0 where one is due; else None.
        """
        ...

    def restore(self) -> contextlib.AbstractContextManager[Path | None]:
        """The newest intact checkpoint as a local folder, or None."""
        ...

    def log(self, line: str) -> None:
        """Log a line, once for all ranks, where the run is observed."""
        ...


class LocalContext:
    """Training in this process alone.

    Args:
        checkpoints_uri: folder of the checkpoints; None keeps none.
        device: to compute on.
        observer: is shown each epoch as it ends.
        workers_here: such trainings at a time in the memory of this machine.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        checkpoints_uri: str | None,
        device: torch.device,
        observer: EpochObserver | None = None,
        workers_here: int = 1,
    ) -> None:
        self.device = device
        self.workers_here = workers_here
        self._uri = checkpoints_uri
        self._observer = observer

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Show the epoch, keep the checkpoint and remove older ones."""
        if self._observer is not None:
            self._observer.show(epoch, metrics)
        if checkpoint is None or self._uri is None:
            return
        if keep_checkpoint(checkpoint, storage.join(self._uri, f"{epoch:04d}")):
            self._remove_checkpoints(checkpoint_names(self._uri)[:-CHECKPOINTS_KEPT])

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """The newest intact checkpoint.

        Older ones that a killed process was about to remove are removed.
        """
        if self._uri is None:
            yield None
            return
        with newest_checkpoint(self._uri) as (name, folder):
            older = [other for other in checkpoint_names(self._uri) if other < name]
            self._remove_checkpoints(older[: len(older) - CHECKPOINTS_KEPT + 1])
            yield folder

    def log(self, line: str) -> None:
        """Log a line of an observed run, which keeps checkpoints."""
        if self._observer is not None and self._uri is not None:
            log_line(line)

    def _remove_checkpoints(self, names: list[str]) -> None:
        for name in names:
            storage.remove_folder(storage.join(str(self._uri), name))


@contextlib.contextmanager
def newest_checkpoint(uri: str) -> Iterator[tuple[str, Path | None]]:
    """Name and local folder of the newest intact checkpoint.

    An empty name and None where there is none.

    Args:
        uri: folder of the checkpoints.
    """
    for name in reversed(checkpoint_names(uri)):
        with storage.local_folder(storage.join(uri, name)) as folder:
            if is_intact(folder):
                yield name, folder
                return
            log_line(f"checkpoint {name} is not whole; looking for an older one")
    yield "", None


def sum_over_ranks(values: Tensor, ctx: TrainContext) -> Tensor:
    """Sum a tensor over the ranks, in place where there are several."""
    if ctx.world_size > 1:
        dist.all_reduce(values)
    return values


def checkpoint_names(uri: str) -> list[str]:
    """Names of the checkpoint folders, oldest first, without the files Ray keeps beside them."""
    return [name for name in storage.names(uri) if name.isdigit()]


def keep_checkpoint(folder: Path, uri: str) -> bool:
    """Copy a checkpoint to storage; True where that succeeded.

    A failure is logged and training goes on: storage may be reachable again at the next checkpoint.
    """
    try:
        storage.upload_folder(folder, uri)
    except storage.IO_ERRORS as error:
        log_line(f"no checkpoint at {uri}: {error}; training goes on from memory")
        return False
    return True
