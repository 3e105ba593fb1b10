"""The training loop: plain torch that does not know its launcher.

``fit`` alone and under N workers makes the same weights: the global batch is formed before it is dealt, losses are
divided by the global batch's weight, and randomness hangs on bags. The launcher is behind ``TrainContext``; with more
than one worker it has made the process group, and ``fit`` wraps the model in torch's own DDP.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from milcore.config import SplitName, TrainConfig
from milcore.errors import MILError
from milcore.metrics.auroc import macro_auroc
from milcore.mil.bags.bags import Bags
from milcore.mil.bags.batch import BagBatch
from milcore.mil.bags.dealing import deal, global_batches, micro_batches
from milcore.mil.dropout import Dropout
from milcore.mil.model import MILModel, emulates_bf16, make_model
from milcore.runtime.progress import log_line
from milcore.training.batching import RankBatch, rank_batch
from milcore.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from milcore.training.class_balance import class_weights, even_draw
from milcore.training.context import TrainContext
from milcore.training.history import HistoryRow
from milcore.training.optimizer import Optimisation
from milcore.training.selection import Validation

ROWS_PER_SUM = 4096


class FitResult(NamedTuple):
    """The model that did best on validation, what validation said of it, and how it was reached."""

    model: MILModel
    history: list[HistoryRow]
    best_epoch: int
    best: Validation


def fit(config: TrainConfig, bags: Bags, ctx: TrainContext) -> FitResult:
    """Train on split ``train`` and keep the epoch that ranks first on split ``val``; split ``test`` is not touched.

    An epoch ranks by AUROC, then by loss (``Validation.rank``). Without validation bags nothing selects: the last
    epoch, by which the learning rate has fallen, is kept.

    Raises:
        MILError: the loss is not finite.
    """
    if ctx.rank == 0 and config.precision == "bf16" and emulates_bf16(ctx.device):
        log_line(
            "warning: precision bf16: this CPU has no bf16 products and emulates them, many times slower than fp32"
        )
    loop = _Loop(config, bags, ctx)
    progress = loop.start()
    for epoch in range(progress.epochs_done, config.epochs):
        if epoch - progress.best_epoch > config.patience:
            break
        metrics = loop.train_epoch(epoch) | loop.validate()
        _note(progress, epoch, metrics, loop.outcome)
        loop.report(progress, epoch, metrics)
    loop.model.load_state_dict(progress.best_weights)
    return FitResult(loop.model, progress.history, progress.best_epoch, progress.best)


def bag_losses(
    log_prob: Float[Tensor, "bag class"], labels: Int[Tensor, " bag"], smoothing: float
) -> Float[Tensor, " bag"]:
    """``-(1 - s) log p[label] - s mean(log p)`` of every bag.

    Args:
        log_prob: of the classes.
        labels: the class of each bag.
        smoothing: s, the share of a label that is spread over the classes, 0 to 1.

    Source: Szegedy et al. 2016, arXiv 1512.00567, section 7.
    """
    of_label = log_prob.gather(1, labels[:, None])[:, 0]
    return -torch.lerp(of_label, log_prob.mean(dim=1), smoothing) if smoothing else -of_label


def _note(progress: Progress, epoch: int, metrics: dict[str, float], model: MILModel) -> None:
    """Enter an epoch into the history; keep the weights if it ranks before all others so far."""
    for name, value in metrics.items():
        split, _, metric = name.partition("_")
        progress.history.append(HistoryRow(epoch, split, metric, value))
    progress.epochs_done = epoch + 1
    validation = Validation(metrics["val_loss"], metrics["val_auroc"])
    if math.isnan(validation.loss) or validation.rank < progress.best.rank:
        progress.best_epoch, progress.best = epoch, validation
        progress.best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


class _Watched:
    """An iterator that knows for how many seconds it was waited for."""

    def __init__(self, batches: Iterator[BagBatch]) -> None:
        self._batches = batches
        self.waiting_s = 0.0

    def __iter__(self) -> Iterator[BagBatch]:
        return self

    def __next__(self) -> BagBatch:
        started = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.waiting_s += time.perf_counter() - started


class _Loop:
    """A model under training on one rank."""

    def __init__(self, config: TrainConfig, bags: Bags, ctx: TrainContext) -> None:
        self.config, self.bags, self.ctx = config, bags, ctx
        instance = bags.instance()
        self.model = make_model(config, instance.shape[-1], bags.classes).to(ctx.device)
        self.budget = self.model.instance_budget(instance)
        self.training = Optimisation(config, self.model)
        self.weights = self._bag_weights()
        self.most = config.instances_per_bag or max(bags.lengths)
        self.lengths = [min(length, self.most) for length in bags.lengths]
        distributed = ctx.world_size > 1
        self.replica = DistributedDataParallel(self.model, forward_sync_buffers=False) if distributed else self.model

    def start(self) -> Progress:
        """Go on from the newest checkpoint, or from the beginning."""
        with self.ctx.restore() as folder:
            if folder is not None:
                return load_checkpoint(folder, self.training)
        self.model.encoder.prepare(self._feature_statistics)
        return Progress()

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training bags.

        Returns:
            ``train_loss``, the weighted mean over the bags; ``train_bags_per_sec``; ``train_waiting``, the share of
            time in which ranks waited for instances to be read.

        Raises:
            MILError: the loss is not finite.
        """
        started = time.perf_counter()
        rank_batches = [self._rank_batch(batch) for batch in self._batches(epoch)]
        packed = _Watched(self.bags.batches(group.bags for dealt in rank_batches for group in dealt.groups))
        dropout = Dropout(self.config.seed, epoch, self.config.dropout)
        loss = 0.0
        for step, dealt in enumerate(rank_batches):
            loss += self._backward(dealt, packed, dropout) * dealt.batch_weight
            self.training.step(epoch + step / len(rank_batches))
        loss, waiting = self._sum_over_ranks(loss, packed.waiting_s)
        loss /= sum(dealt.batch_weight for dealt in rank_batches)
        if not math.isfinite(loss):
            raise MILError(f"epoch {epoch}: the training loss is {loss}; lower learning_rate or use precision fp32")
        elapsed = time.perf_counter() - started
        bags = len(self.bags.split("train"))
        return {
            "train_loss": loss,
            "train_bags_per_sec": bags / elapsed,
            "train_waiting": waiting / (elapsed * self.ctx.world_size),
        }

    @property
    def outcome(self) -> MILModel:
        """What is validated and published: the model, or the moving average of its weights."""
        return cast("MILModel", self.training.outcome)

    def validate(self) -> dict[str, float]:
        """``val_loss`` and ``val_auroc``; NaN where they are not defined."""
        said = self.predict("val")
        labels = np.array([self.bags.entries[index].label for index in said], dtype=np.int64)
        log_prob = np.array([said[index] for index in said], dtype=np.float64).reshape(-1, self.bags.classes)
        if len(labels) == 0:
            return {"val_loss": math.nan, "val_auroc": math.nan}
        loss = -log_prob[np.arange(len(labels)), labels].mean()
        return {"val_loss": float(loss), "val_auroc": macro_auroc(labels, log_prob)}

    @torch.no_grad()
    def predict(self, split: SplitName) -> dict[int, list[float]]:
        """Log-probabilities of every bag of a split, on every rank, in order of the bags."""
        hand = deal(self.bags.split(split), self.bags.lengths, self.ctx.world_size)[self.ctx.rank]
        groups = micro_batches(hand, self.bags.lengths, self.budget)
        said: dict[int, list[float]] = {}
        for group, batch in zip(groups, self.bags.batches(groups), strict=True):
            log_prob = self.outcome(batch, None)
            said.update(zip(group, log_prob.tolist(), strict=True))
        if self.ctx.world_size > 1:
            parts: list[dict[int, list[float]]] = [{} for _ in range(self.ctx.world_size)]
            dist.all_gather_object(parts, said)
            said = {index: values for part in parts for index, values in part.items()}
        return dict(sorted(said.items()))

    def report(self, progress: Progress, epoch: int, metrics: dict[str, float]) -> None:
        """Hand an epoch to the launcher, with a checkpoint when one is due."""
        due = (epoch + 1) % self.config.checkpoint_every == 0
        if not due or self.ctx.rank != 0:
            self.ctx.report(epoch, metrics, None)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), self.training, progress)
            self.ctx.report(epoch, metrics, Path(folder))

    def _bag_weights(self) -> list[float]:
        """What the loss of each bag counts."""
        labels = [entry.label for entry in self.bags.entries]
        if self.config.class_balance != "weighted":
            return [1.0] * len(labels)
        of_class = class_weights(np.array([labels[i] for i in self.bags.split("train")]), self.bags.classes)
        return [float(of_class[label]) for label in labels]

    def _batches(self, epoch: int) -> list[list[int]]:
        """The global batches of an epoch: every training bag once, or every class equally often."""
        indices, seed = self.bags.split("train"), self.config.seed
        if self.config.class_balance == "sampled":
            indices = even_draw(indices, [self.bags.entries[index].label for index in indices], seed, epoch)
        return global_batches(indices, self.config.batch_size, seed, epoch)

    def _rank_batch(self, batch: list[int]) -> RankBatch:
        return rank_batch(
            batch,
            lengths=self.lengths,
            weights=self.weights,
            budget=self.budget,
            rank=self.ctx.rank,
            world_size=self.ctx.world_size,
        )

    def _backward(self, dealt: RankBatch, packed: Iterator[BagBatch], dropout: Dropout) -> float:
        """The gradient of the global batch's mean loss; returns this rank's part of that loss."""
        self.training.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for place, (group, full) in enumerate(zip(dealt.groups, packed, strict=False), start=1):
            whole = full.subsample(self.most, dropout.seed, dropout.epoch)
            batch = whole.rank_slice(self.ctx.rank, self.ctx.world_size) if group.split_over_ranks else whole
            with self._synchronised(last=place == len(dealt.groups)):
                log_prob: Tensor = self.replica(batch, dropout)
                labels = batch.labels.to(self.ctx.device)
                losses = bag_losses(log_prob, labels, self.config.label_smoothing)
                loss = (losses * losses.new_tensor(group.weights)).sum()
                torch.autograd.backward(loss)
            total += loss.item()
        return total / self.ctx.world_size

    def _synchronised(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel once per step, with the last micro-batch."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return contextlib.nullcontext()
        without: contextlib.AbstractContextManager[None] = self.replica.no_sync()
        return without

    def _feature_statistics(self) -> tuple[Float[Tensor, " feature"], Float[Tensor, " feature"]]:
        """Mean and standard deviation over the instances of the training bags, each rank reading its share."""
        width = self.bags.instance().shape[-1]
        sums = torch.zeros(3, width, dtype=torch.float64, device=self.ctx.device)
        hand = deal(self.bags.split("train"), self.bags.lengths, self.ctx.world_size)[self.ctx.rank]
        for batch in self.bags.batches(micro_batches(hand, self.bags.lengths, ROWS_PER_SUM)):
            for start, stop in batch.spans(ROWS_PER_SUM):
                features = batch.instances[start:stop].to(self.ctx.device, torch.float64)
                count = torch.full_like(features[0], len(features))
                sums += torch.stack([count, features.sum(0), features.square().sum(0)])
        if self.ctx.world_size > 1:
            dist.all_reduce(sums)
        mean, square = sums[1] / sums[0], sums[2] / sums[0]
        return mean, (square - mean.square()).clamp_min(0.0).sqrt()

    def _sum_over_ranks(self, *values: float) -> list[float]:
        totals = torch.tensor(values, dtype=torch.float64, device=self.ctx.device)
        if self.ctx.world_size > 1:
            dist.all_reduce(totals)
        return [float(total) for total in totals]
