"""What the training loop sees of Ray: ``TrainContext`` inside a Ray Train worker and inside a Ray Tune trial."""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import ray.train
import ray.tune
import torch
from ray.train.torch import get_device

from milcore.metrics import NO_VALIDATION, Validation
from milcore.progress import EpochLines
from milcore.train import LocalContext


def calm_logging() -> None:
    """Keep Ray's line per report and checkpoint out of the log of this worker."""
    for name in (None, "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)


class RayContext:
    """One worker of a Ray Train run, which has made the process group.

    Args:
        checkpoints_uri: the run's checkpoints, which another launcher may have begun.
        lines: shows epochs as they end, on rank 0.
    """

    def __init__(self, checkpoints_uri: str, lines: EpochLines) -> None:
        worker = ray.train.get_context()
        self.rank: int = worker.get_world_rank()
        self.world_size: int = worker.get_world_size()
        self.device: torch.device = get_device()
        self._uri = checkpoints_uri
        self._lines = lines

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Meet the other ranks; Ray keeps the checkpoint as ``<checkpoints>/<epoch>/``."""
        if self.rank == 0:
            self._lines.show(epoch, metrics)
        kept = None if checkpoint is None else ray.train.Checkpoint.from_directory(str(checkpoint))
        ray.train.report(metrics, checkpoint=kept, checkpoint_dir_name=f"{epoch:04d}")

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """The newest checkpoint Ray knows; where it knows none, the newest of a run begun without Ray."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            with LocalContext(self._uri, self.device).restore() as folder:
                yield folder
            return
        with checkpoint.as_directory() as kept:
            yield Path(kept)


class TrialContext:
    """One trial of a sweep: a single worker that tells Ray Tune its best validation figures so far."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._best = NO_VALIDATION

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Report the best epoch so far; trials are held against each other by ``score``, the higher the better."""
        validation = Validation(metrics["val_loss"], metrics["val_auroc"])
        if validation.rank < self._best.rank:
            self._best = validation
        kept = None if checkpoint is None else ray.tune.Checkpoint.from_directory(str(checkpoint))
        if kept is not None:
            kept.set_metadata(self._best._asdict())
        loss, auroc = self._best
        score = -loss if math.isnan(auroc) else auroc
        ray.tune.report({"score": score, "val_loss": loss, "val_auroc": auroc, "epochs": epoch + 1}, checkpoint=kept)

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """The trial's newest checkpoint, and the best figures up to it."""
        checkpoint = ray.tune.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        self._best = Validation(**checkpoint.get_metadata())
        with checkpoint.as_directory() as kept:
            yield Path(kept)
