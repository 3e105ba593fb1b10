"""Training contexts inside a Ray Train worker and inside a Ray Tune trial.

Both are a ``TrainContext`` of the training loop.
"""

import contextlib
import logging
import math
import posixpath
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray.train
import ray.tune
import torch
from ray.train import CheckpointUploadMode
from ray.train.torch import get_device

from milcore.config import Target
from milcore.runtime import storage
from milcore.runtime.digest import with_own_digest, without_own_digest
from milcore.runtime.progress import EpochObserver, log_line
from milcore.training.checkpoints import is_intact, validations
from milcore.training.context import LocalContext, keep_checkpoint, newest_checkpoint
from milcore.training.selection import NO_VALIDATION, RANK_METRICS, Validation, metric_name
from milcore.training.validation import validation_of


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
        self.workers_here: int = worker.get_local_world_size()
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
        with newest_checkpoint(self._uri) as (_, folder):
            yield folder

    def log(self, line: str) -> None:
        """Log a line, on rank 0."""
        if self.rank == 0:
            log_line(line)


class TrialContext:
    """Training context of one trial, which reports its best validation to Ray Tune.

    A trial that is resumed reports the epochs up to its checkpoint again, so that the scheduler compares it as before.

    Args:
        checkpoints_uri: folder of the trial's checkpoints.
        device: to compute on.
        workers_here: trials at a time on this node.
        target: of the models, whose metric compares trials.
    """

    rank = 0
    world_size = 1

    def __init__(self, checkpoints_uri: str, device: torch.device, workers_here: int, target: Target) -> None:
        self._target = target
        self.device = device
        self.workers_here = workers_here
        self._checkpoints = LocalContext(checkpoints_uri, device)
        self._best = NO_VALIDATION

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Keep the checkpoint and report the validation of the best epoch so far.

        Ray Tune compares trials by its ``score``.
        """
        self._checkpoints.report(epoch, metrics, checkpoint)
        self._report(epoch, validation_of(metrics, self._target))

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Restore the trial's newest intact checkpoint, and report the epochs up to it."""
        with self._checkpoints.restore() as folder:
            metric = RANK_METRICS[self._target].name
            for epoch, validation in enumerate([] if folder is None else validations(folder, metric)):
                self._report(epoch, validation)
            yield folder

    def log(self, line: str) -> None:
        """Log nothing: a sweep has a line per trial."""

    def _report(self, epoch: int, validation: Validation) -> None:
        if validation.rank < self._best.rank:
            self._best = validation
        ray.tune.report(figures(self._best, epoch + 1, self._target))


class FoldTrial:
    """A trial that is scored by its mean validation over folds.

    It reports to Ray Tune after each fold. One that is resumed reports the folds it has trained again, and goes on with
    the next.

    Args:
        uri: JSON object of the folds that have been trained.
        target: of the models, whose metric compares trials.
    """

    def __init__(self, uri: str, target: Target) -> None:
        self._uri, self._target = uri, target
        self._folds: list[tuple[Validation, int]] = []
        if storage.exists(uri):
            for loss, metric, epochs in without_own_digest(storage.read_json(uri), uri)["folds"]:
                self._add(Validation(loss, metric), epochs)

    @property
    def done(self) -> int:
        """Number of folds that have been trained."""
        return len(self._folds)

    def report(self, best: Validation, epochs: int) -> None:
        """Keep a fold's validation and report the mean over the folds.

        Args:
            best: validation of the fold's best epoch.
            epochs: epochs up to it.
        """
        folds = [[*validation, trained] for validation, trained in [*self._folds, (best, epochs)]]
        try:
            storage.write_json(self._uri, with_own_digest({"folds": folds}))
        except storage.IO_ERRORS as error:
            log_line(f"the folds of this trial are not kept: {error}; it goes on")
        self._add(best, epochs)

    def _add(self, best: Validation, epochs: int) -> None:
        self._folds.append((best, epochs))
        losses, metrics = (
            np.array(column, dtype=np.float64) for column in zip(*(fold for fold, _ in self._folds), strict=True)
        )
        error = float(metrics.std(ddof=1) / math.sqrt(len(metrics))) if len(metrics) > 1 else math.nan
        mean = Validation(float(losses.mean()), float(metrics.mean()))
        trained = max(trained for _, trained in self._folds)
        ray.tune.report({**figures(mean, trained, self._target), f"{metric_name(self._target)}_se": error})


def figures(validation: Validation, epochs: int, target: Target) -> dict[str, float]:
    """Figures that a trial reports; Ray Tune compares trials by ``score``.

    Args:
        validation: of the best epoch, or the mean over folds.
        epochs: trained.
        target: of the models.
    """
    loss, metric = validation
    return {"score": score(validation), "val_loss": loss, metric_name(target): metric, "epochs": epochs}


def score(validation: Validation) -> float:
    """Score of a trial, the higher the better: the metric, else minus the loss."""
    return -validation.loss if math.isnan(validation.metric) else validation.metric
