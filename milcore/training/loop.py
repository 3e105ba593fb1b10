"""The training loop: plain torch that does not know its launcher.

``train_model`` in one process and under N workers trains the same weights: the global batch is formed before it is
dealt, losses are divided by the global batch's weight, and randomness depends on bags. The launcher is behind
``TrainContext``; with more than one worker it has made the process group, and ``train_model`` wraps the model in
torch's DDP.
"""

import contextlib
import functools
import math
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from milcore.config import TrainConfig
from milcore.encoders.precision import warn_of_emulation
from milcore.errors import MILError
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.bags.batch import BagBatch
from milcore.mil.dropout import Dropout
from milcore.mil.model import BagLosses, LossOfBags, MILModel, make_model
from milcore.mil.target import BagLoss, JointLoss
from milcore.mil.threads import torch_threads, useful_threads
from milcore.runtime.limits import cpus
from milcore.training.batching import Group, RankBatch, bags_per_step, instances_per_bag, rank_batches
from milcore.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from milcore.training.context import TrainContext, sum_over_ranks
from milcore.training.feature_statistics import feature_statistics
from milcore.training.history import HistoryRow
from milcore.training.optimizer import Optimisation
from milcore.training.selection import Validation
from milcore.training.targets import TRAINING_TARGETS
from milcore.training.validation import gather_by_index, predict_split, validate, validation_of


class FitResult(NamedTuple):
    """Result of training.

    Args:
        model: with the weights of the best epoch.
        history: metrics of all epochs.
        best_epoch: the epoch that ranks first on validation, from 0.
        best: validation of that epoch.
    """

    model: MILModel
    history: list[HistoryRow]
    best_epoch: int
    best: Validation


def train_model(config: TrainConfig, bags: Bags, ctx: TrainContext) -> FitResult:
    """Train on split ``train`` and keep the epoch that ranks first on ``val``.

    An epoch ranks by the metric of its target, AUROC of classes, then by loss (``Validation.rank``). Without validation
    bags nothing selects: the last epoch, by which the learning rate has fallen, is kept. Split ``test`` is not touched.

    Raises:
        MILError: the loss is not finite.
    """
    if ctx.rank == 0:
        warn_of_emulation(config.precision, ctx.device)
    loop = _Loop(config, bags, ctx)
    with torch_threads(loop.threads) as threads:
        ctx.log(f"torch threads: {threads}; CPUs: {cpus()}")
        return _train(loop)


def _train(loop: "_Loop") -> FitResult:
    """Train the epochs that are left, until patience ends."""
    config, progress = loop.config, loop.start()
    with contextlib.closing(loop.batches(progress.epochs_done)) as batches:
        for epoch in range(progress.epochs_done, config.epochs):
            if epoch - progress.best_epoch > config.patience:
                break
            trained = loop.train_epoch(epoch, batches)
            metrics = trained | validate(config, loop.eval_model, loop.bags, loop.budget, loop.ctx)
            _record_epoch(progress, epoch, metrics, loop)
            loop.report(progress, epoch, metrics)
    loop.model.load_state_dict(progress.best_weights)
    loop.finish()
    return FitResult(loop.model, progress.history, progress.best_epoch, progress.best)


def _record_epoch(progress: Progress, epoch: int, metrics: dict[str, float], loop: "_Loop") -> None:
    """Add an epoch to the history; keep the weights of the best."""
    for name, value in metrics.items():
        split, _, metric = name.partition("_")
        progress.history.append(HistoryRow(epoch, split, metric, value))
    progress.epochs_done = epoch + 1
    validation = validation_of(metrics, loop.config.target)
    if math.isnan(validation.loss) or validation.rank < progress.best.rank:
        progress.best_epoch, progress.best = epoch, validation
        weights = loop.eval_model.state_dict()
        progress.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}


class _TimedBatches:
    """Iterator over batches that sums the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[BagBatch]) -> None:
        self._batches = batches
        self.waiting_s = 0.0

    def __iter__(self) -> Iterator[BagBatch]:
        return self

    def __next__(self) -> BagBatch:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.waiting_s += time.perf_counter() - start


class _Loop:
    """The epochs of a model on one rank."""

    def __init__(self, config: TrainConfig, bags: Bags, ctx: TrainContext) -> None:
        self.config, self.bags, self.ctx = config, bags, ctx
        self.instance = instance = bags.instance()
        self.model = make_model(config, instance.shape[-1], bags.classes).to(ctx.device)
        self.budget = self.model.instance_budget(instance)
        self.model.check_fits(self._entries(bags.split("train")), config.instances_per_bag, with_gradient=True)
        self.model.check_fits(self._entries(bags.split("val")), 0, with_gradient=False)
        self.training = Optimisation(config, self.model)
        self.instances_per_bag = instances_per_bag(config, bags)
        # of the epoch that is trained, and of the next
        self._steps_of = functools.lru_cache(maxsize=2)(
            functools.partial(rank_batches, config, bags, self.budget, ctx=ctx)
        )
        distributed = ctx.world_size > 1
        trained = self.model if isinstance(self.model.target.loss, JointLoss) else BagLosses(self.model)
        self.replica = DistributedDataParallel(trained, forward_sync_buffers=False) if distributed else trained

    @property
    def threads(self) -> int:
        """Threads that a step of mean size makes use of, on each rank."""
        lengths = [min(self.bags.lengths[index], self.instances_per_bag) for index in self.bags.split("train")]
        instances = bags_per_step(self.config, len(lengths)) * sum(lengths) // max(1, len(lengths))
        return useful_threads(self.model, self.instance, instances // self.ctx.world_size)

    def start(self) -> Progress:
        """Resume from the newest checkpoint, or start from the first epoch."""
        with self.ctx.restore() as folder:
            if folder is not None:
                progress = load_checkpoint(folder, self.training)
                if progress.epochs_done < self.config.epochs:
                    self.ctx.log(f"going on at epoch {progress.epochs_done + 1}")
                return progress
        self.model.encoder.prepare(lambda: feature_statistics(self.bags, self.ctx, self.config.seed))
        prepare = TRAINING_TARGETS[self.config.target].prepare
        if prepare is not None:
            prepare(self.model, self._entries(self.bags.split("train")))
        return Progress()

    def batches(self, first: int) -> Generator[BagBatch]:
        """This rank's batches of all epochs from one on.

        The first bags of an epoch are read while the last steps and the validation of the one before compute, so that
        an end by patience leaves some that nobody uses.
        """
        epochs = range(first, self.config.epochs)
        passes = 2 if isinstance(self.model.target.loss, JointLoss) else 1
        return self.bags.batches(
            group.bags
            for epoch in epochs
            for step in self._steps_of(epoch)
            for _ in range(passes)
            for group in step.groups
        )

    def finish(self) -> None:
        """Give the trained model the scale of its target."""
        fit_scale = TRAINING_TARGETS[self.config.target].fit_scale
        if fit_scale is not None:
            outputs = predict_split(self.model, self.bags, "train", self.budget, self.ctx)
            fit_scale(self.model, np.array(list(outputs.values()), dtype=np.float64))

    def train_epoch(self, epoch: int, batches: Iterator[BagBatch]) -> dict[str, float]:
        """Train one pass over the training bags.

        Args:
            epoch: from 0.
            batches: of this epoch, and later ones.

        Returns:
            ``train_loss``, the weighted mean over the bags; ``train_bags_per_sec``; ``train_waiting``, the share of
            time in which ranks waited for instances to be read.

        Raises:
            MILError: the loss is not finite.
        """
        start = time.perf_counter()
        steps, timed = self._steps_of(epoch), _TimedBatches(batches)
        dropout = Dropout(self.config.seed, epoch, self.config.dropout)
        loss = 0.0
        for number, step in enumerate(steps):
            loss += self._backward(step, timed, dropout) * step.batch_weight
            self.training.step(epoch + number / len(steps))
        loss, waiting_s = self._sum_over_ranks(loss, timed.waiting_s)
        loss /= sum(step.batch_weight for step in steps)
        if not math.isfinite(loss):
            raise MILError(f"epoch {epoch}: the training loss is {loss}; lower learning_rate or use precision fp32")
        elapsed_s = time.perf_counter() - start
        return {
            "train_loss": loss,
            "train_bags_per_sec": len(self.bags.split("train")) / elapsed_s,
            "train_waiting": waiting_s / (elapsed_s * self.ctx.world_size),
        }

    @property
    def eval_model(self) -> MILModel:
        """Model to validate and publish: the moving average once updated, else the model."""
        return cast("MILModel", self.training.eval_model)

    def report(self, progress: Progress, epoch: int, metrics: dict[str, float]) -> None:
        """Report an epoch to the launcher, with a checkpoint when one is due."""
        due = (epoch + 1) % self.config.checkpoint_every == 0
        if not due or self.ctx.rank != 0:
            self.ctx.report(epoch, metrics, None)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), self.training, progress)
            self.ctx.report(epoch, metrics, Path(folder))

    def _backward(self, step: RankBatch, batches: Iterator[BagBatch], dropout: Dropout) -> float:
        """Add the gradients of the global batch's mean loss.

        Returns:
            This rank's part of that loss.
        """
        self.training.optimizer.zero_grad(set_to_none=True)
        loss_of, total = self.model.target.loss, 0.0
        if isinstance(loss_of, JointLoss):
            return self._backward_jointly(loss_of, step, batches, dropout)
        for place, (group, whole) in enumerate(zip(step.groups, batches, strict=False), start=1):
            batch = self._sample(group, whole, dropout)
            with self._gradient_sync(last=place == len(step.groups)):
                losses: Tensor = self.replica(batch, dropout, self._loss_of_bags(loss_of, group))
                loss = (losses * losses.new_tensor(group.weights)).sum()
                torch.autograd.backward(loss)
            total += loss.item()
        return total / self.ctx.world_size

    def _loss_of_bags(self, loss_of: BagLoss, group: Group) -> LossOfBags:
        entries, constants = self._entries(group.bags), self.model.constants
        return lambda output: loss_of.losses(output, entries, constants, self.config)

    def _backward_jointly(
        self, loss_of: JointLoss, step: RankBatch, batches: Iterator[BagBatch], dropout: Dropout
    ) -> float:
        """Add the gradients of a loss across the bags of the global batch.

        In two passes: the outputs of all its bags, gathered over the ranks; then the derivative of each goes back
        through its bag. Dropout is that of the bag, so that both passes have the same outputs.

        Returns:
            This rank's part of the loss.
        """
        outputs = gather_by_index(self._outputs(step, batches, dropout), self.ctx)
        indices = sorted(outputs)
        scores = np.array([outputs[index] for index in indices], dtype=np.float64)
        loss = loss_of.loss(scores, self._entries(indices))
        derivative_of = dict(zip(indices, loss.derivative.tolist(), strict=True))
        for place, (group, whole) in enumerate(zip(step.groups, batches, strict=False), start=1):
            factors = zip(group.bags, group.weights, strict=True)
            derivatives = [weight and weight * derivative_of[index] for index, weight in factors]
            with self._gradient_sync(last=place == len(step.groups)):
                output: Tensor = self.replica(self._sample(group, whole, dropout), dropout)
                torch.autograd.backward(output, output.new_tensor(derivatives)[:, None])
        return loss.loss / self.ctx.world_size

    @torch.no_grad()
    def _outputs(self, step: RankBatch, batches: Iterator[BagBatch], dropout: Dropout) -> dict[int, list[float]]:
        """Outputs of this rank's bags of a global batch, by index."""
        outputs: dict[int, list[float]] = {}
        for group, whole in zip(step.groups, batches, strict=False):
            of_group = self.model(self._sample(group, whole, dropout), dropout).tolist()
            rows = zip(group.bags, group.weights, of_group, strict=True)
            # one without weight is another rank's, which has its output
            outputs |= {index: output for index, weight, output in rows if weight}
        return outputs

    def _entries(self, indices: Sequence[int]) -> list[BagEntry]:
        return [self.bags.entries[index] for index in indices]

    def _sample(self, group: Group, whole: BagBatch, dropout: Dropout) -> BagBatch:
        """Instances of a group's bags that this rank computes on in a pass."""
        sample = whole.subsample(self.instances_per_bag, dropout.seed, dropout.epoch)
        return sample.rank_slice(self.ctx.rank, self.ctx.world_size) if group.split_over_ranks else sample

    def _gradient_sync(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Sum gradients over ranks once per step, with the last micro-batch."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return contextlib.nullcontext()
        without: contextlib.AbstractContextManager[None] = self.replica.no_sync()
        return without

    def _sum_over_ranks(self, *values: float) -> list[float]:
        totals = torch.tensor(values, dtype=torch.float64, device=self.ctx.device)
        return [float(total) for total in sum_over_ranks(totals, self.ctx)]
