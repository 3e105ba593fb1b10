"""Training contexts inside a Ray Train worker and inside a Ray Tune trial.

Both are a ``TrainContext`` of the training loop.
"""

import contextlib
import logging
import math
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.tune
import torch
from ray.train import CheckpointUploadMode
from ray.train.torch import get_device

from milcore.runtime import storage
from milcore.runtime.progress import EpochObserver
from milcore.training.checkpoints import is_intact
from milcore.training.context import LocalContext, keep_checkpoint
from milcore.training.selection import NO_VALIDATION, Validation


def quiet_logging() -> None:
    """Keep Ray's line per report and checkpoint out of this worker's log."""
    for name in (None, "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)


class RayContext:
    """One worker of a Ray Train run; Ray has initialised the process group.

    Args:
        checkpoints_uri: folder of Ray's run, which holds the checkpoints; another launcher may have created it.
        watch: is shown epochs as they end, on rank 0.
    """

    def __init__(self, checkpoints_uri: str, watch: EpochObserver) -> None:
        worker = ray.train.get_context()
        self.rank: int = worker.get_world_rank()
        self.world_size: int = worker.get_world_size()
        self.device: torch.device = get_device()
        self._uri = checkpoints_uri
        self._watch = watch

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Report an epoch to Ray, a barrier for all ranks, and write the checkpoint.

        The checkpoint is ``<checkpoints>/<epoch>/``, which Ray registers and deletes later. It is written here and not
        by Ray, so that storage which is full or unavailable costs a checkpoint and not the run.
        """
        if self.rank == 0:
            self._watch.show(epoch, metrics)
        name, registered = f"{epoch:04d}", None
        if checkpoint is not None and keep_checkpoint(checkpoint, storage.join(self._uri, name)):
            target = ray.train.get_context().get_storage()
            path = posixpath.join(target.experiment_fs_path, name)
            registered = ray.train.Checkpoint(path, target.storage_filesystem)
        ray.train.report(metrics, checkpoint=registered, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Newest checkpoint that Ray has registered, if whole; else the folder's newest whole one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as path:
                if is_intact(Path(path)):
                    yield Path(path)
                    return
        with LocalContext(self._uri, self.device).restore() as folder:
            yield folder


class TrialContext:
    """Training context of one trial, which reports its best validation to Ray Tune."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._best = NO_VALIDATION

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Report the validation of the best epoch so far.

        Ray Tune compares trials by its ``score``.
        """
        validation = Validation(metrics["val_loss"], metrics["val_auroc"])
        if validation.rank < self._best.rank:
            self._best = validation
        reported = None if checkpoint is None else ray.tune.Checkpoint.from_directory(str(checkpoint))
        if reported is not None:
            reported.set_metadata(self._best._asdict())
        loss, auroc = self._best
        figures = {"score": score(self._best), "val_loss": loss, "val_auroc": auroc, "epochs": epoch + 1}
        ray.tune.report(figures, checkpoint=reported)

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Restore the trial's newest checkpoint and the best validation up to it."""
        checkpoint = ray.tune.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        self._best = Validation(**checkpoint.get_metadata())
        with checkpoint.as_directory() as path:
            yield Path(path)


class FoldTrial:
    """A trial that is scored by its mean validation over folds.

    It reports to Ray Tune after each fold. An interrupted trial is resumed with the fold after its last report.
    """

    def __init__(self) -> None:
        checkpoint = ray.tune.get_checkpoint()
        metadata: dict[str, Any] = {"folds": [], "epochs": 0} if checkpoint is None else checkpoint.get_metadata()
        self._validations = [Validation(*fold) for fold in metadata["folds"]]
        self._epochs = int(metadata["epochs"])

    @property
    def done(self) -> int:
        """Number of folds that have been trained."""
        return len(self._validations)

    def report(self, best: Validation, epochs: int) -> None:
        """Report a fold.

        Args:
            best: validation of the fold's best epoch.
            epochs: epochs up to it.
        """
        self._validations.append(best)
        self._epochs = max(self._epochs, epochs)
        losses, areas = (np.array(column, dtype=np.float64) for column in zip(*self._validations, strict=True))
        mean = Validation(float(losses.mean()), float(areas.mean()))
        error = float(areas.std(ddof=1) / math.sqrt(len(areas))) if len(areas) > 1 else math.nan
        figures = {"score": score(mean), "val_loss": mean.loss, "val_auroc": mean.auroc, "epochs": self._epochs}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = ray.tune.Checkpoint.from_directory(folder)
            folds = [list(validation) for validation in self._validations]
            checkpoint.set_metadata({"folds": folds, "epochs": self._epochs})
            ray.tune.report({**figures, "val_auroc_se": error}, checkpoint=checkpoint)


def score(validation: Validation) -> float:
    """Score of a trial, the higher the better: AUROC, else minus the loss."""
    return -validation.loss if math.isnan(validation.auroc) else validation.auroc
