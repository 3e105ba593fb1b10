"""What the training loop sees of Ray: ``TrainContext`` inside a Ray Train worker and inside a Ray Tune trial."""

import contextlib
import logging
import math
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray.train
import ray.tune
import torch
from ray.train import CheckpointUploadMode
from ray.train.torch import get_device

from milcore.runtime import storage
from milcore.runtime.progress import EpochObserver
from milcore.training.checkpoints import is_whole
from milcore.training.context import LocalContext, keep_checkpoint
from milcore.training.selection import NO_VALIDATION, Validation


def calm_logging() -> None:
    """Keep Ray's line per report and checkpoint out of the log of this worker."""
    for name in (None, "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)


class RayContext:
    """One worker of a Ray Train run, which has made the process group.

    Args:
        checkpoints_uri: the folder of Ray's run, which holds the checkpoints; another launcher may have begun it.
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
        """Meet the other ranks; the checkpoint is ``<checkpoints>/<epoch>/``, which Ray knows and drops in its time.

        It is written here and not by Ray, so that storage which is full or away costs a checkpoint and not the run.
        """
        if self.rank == 0:
            self._watch.show(epoch, metrics)
        name, kept = f"{epoch:04d}", None
        if checkpoint is not None and keep_checkpoint(checkpoint, storage.join(self._uri, name)):
            place = ray.train.get_context().get_storage()
            kept = ray.train.Checkpoint(posixpath.join(place.experiment_fs_path, name), place.storage_filesystem)
        ray.train.report(metrics, checkpoint=kept, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """The newest checkpoint Ray knows; where that is none or a damaged one, the newest whole one in the folder."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as kept:
                if is_whole(Path(kept)):
                    yield Path(kept)
                    return
        with LocalContext(self._uri, self.device).restore() as folder:
            yield folder


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
        figures = {"score": score(self._best), "val_loss": loss, "val_auroc": auroc, "epochs": epoch + 1}
        ray.tune.report(figures, checkpoint=kept)

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


class FoldsOfTrial:
    """A trial that is scored by its mean over folds, and tells Ray Tune so after each of them.

    A trial that was cut short goes on with the fold after its last report.
    """

    def __init__(self) -> None:
        checkpoint = ray.tune.get_checkpoint()
        self._said = [] if checkpoint is None else [Validation(*its) for its in checkpoint.get_metadata()["folds"]]
        self._epochs = 0 if checkpoint is None else int(checkpoint.get_metadata()["epochs"])

    @property
    def done(self) -> int:
        """Folds that were trained."""
        return len(self._said)

    def report(self, best: Validation, epochs: int) -> None:
        """Take what a fold's validation says of its best epoch, and how many epochs that took."""
        self._said.append(best)
        self._epochs = max(self._epochs, epochs)
        losses, areas = (np.array(column, dtype=np.float64) for column in zip(*self._said, strict=True))
        mean = Validation(float(losses.mean()), float(areas.mean()))
        error = float(areas.std(ddof=1) / math.sqrt(len(areas))) if len(areas) > 1 else math.nan
        figures = {"score": score(mean), "val_loss": mean.loss, "val_auroc": mean.auroc, "epochs": self._epochs}
        with tempfile.TemporaryDirectory() as folder:
            kept = ray.tune.Checkpoint.from_directory(folder)
            kept.set_metadata({"folds": [list(its) for its in self._said], "epochs": self._epochs})
            ray.tune.report({**figures, "val_auroc_se": error}, checkpoint=kept)


def score(validation: Validation) -> float:
    """By what trials are held against each other while they run, the higher the better."""
    return -validation.loss if math.isnan(validation.auroc) else validation.auroc
