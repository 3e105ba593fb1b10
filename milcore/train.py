"""The training loop: plain torch that does not know its launcher.

``fit`` alone and under N workers makes the same weights: the global batch is formed before it is dealt, the loss is
divided by the global bag count, and randomness hangs on bags. The launcher is behind ``TrainContext``; with more than
one worker it has made the process group, and ``fit`` wraps the model in torch's own DDP.
"""

import contextlib
import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from milcore import storage
from milcore.bags import BagBatch, Bags, deal, global_batches, micro_batches
from milcore.checkpoints import FILES, HistoryRow, Progress, load_checkpoint, save_checkpoint
from milcore.config import SplitName, TrainConfig
from milcore.dropout import Dropout
from milcore.encoders.features import FeatureEncoder
from milcore.errors import MILError
from milcore.metrics import Validation, macro_auroc
from milcore.model import MILModel, make_model
from milcore.progress import EpochLines

CHECKPOINTS_KEPT = 2
ROWS_PER_SUM = 4096


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
        lines: shows epochs as they end; None is silent.
    """

    rank = 0
    world_size = 1

    def __init__(self, checkpoints_uri: str | None, device: torch.device, lines: EpochLines | None = None) -> None:
        self.device = device
        self._uri = checkpoints_uri
        self._lines = lines

    def report(self, epoch: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Show the line, keep the checkpoint and drop older ones."""
        if self._lines is not None:
            self._lines.show(epoch, metrics)
        if checkpoint is None or self._uri is None:
            return
        storage.upload_folder(checkpoint, storage.join(self._uri, f"{epoch:04d}"))
        for name in self._epochs()[:-CHECKPOINTS_KEPT]:
            storage.remove(storage.join(self._uri, name))

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """The newest checkpoint that was written to its end."""
        for name in reversed(self._epochs()):
            uri = storage.join(str(self._uri), name)
            if set(FILES) <= set(storage.names(uri)):
                with storage.local_folder(uri) as folder:
                    yield folder
                return
        yield None

    def _epochs(self) -> list[str]:
        """Names of the checkpoint folders; Ray's marker files lie beside them."""
        return [name for name in storage.names(self._uri) if name.isdigit()] if self._uri is not None else []


class FitResult(NamedTuple):
    """The model that did best on validation and how it was reached."""

    model: MILModel
    history: list[HistoryRow]
    best_epoch: int


def fit(config: TrainConfig, bags: Bags, ctx: TrainContext) -> FitResult:
    """Train on split ``train`` and keep the epoch that ranks first on split ``val``; split ``test`` is not touched.

    An epoch ranks by AUROC, then by loss (``Validation.rank``). Without validation bags nothing selects: the last
    epoch, by which the learning rate has fallen to nothing, is kept.

    Raises:
        MILError: the loss is not finite.
    """
    loop = _Loop(config, bags, ctx)
    progress = loop.start()
    for epoch in range(progress.epochs_done, config.epochs):
        if epoch - progress.best_epoch > config.patience:
            break
        train_loss = loop.train_epoch(epoch)
        validation = loop.validate()
        metrics = {"train_loss": train_loss, "val_loss": validation.loss, "val_auroc": validation.auroc}
        _note(progress, epoch, metrics, loop.model)
        loop.report(progress, epoch, metrics)
    loop.model.load_state_dict(progress.best_weights)
    return FitResult(loop.model, progress.history, progress.best_epoch)


def _note(progress: Progress, epoch: int, metrics: dict[str, float], model: MILModel) -> None:
    """Enter an epoch into the history; keep the weights if it ranks before all others so far."""
    for name, value in metrics.items():
        split, metric = name.split("_")
        progress.history.append(HistoryRow(epoch, split, metric, value))
    progress.epochs_done = epoch + 1
    validation = Validation(metrics["val_loss"], metrics["val_auroc"])
    if math.isnan(validation.loss) or validation.rank < progress.best.rank:
        progress.best_epoch, progress.best = epoch, validation
        progress.best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


class _Group(NamedTuple):
    """Bags that one rank computes on at once, the factor of their losses, and whether all ranks hold a part of each."""

    bags: list[int]
    scale: float
    spread: bool


class _Loop:
    """A model under training on one rank."""

    def __init__(self, config: TrainConfig, bags: Bags, ctx: TrainContext) -> None:
        self.config, self.bags, self.ctx = config, bags, ctx
        instance = bags.instance()
        self.model = make_model(config, instance.shape[-1], bags.classes).to(ctx.device)
        self.budget = self.model.instance_budget(instance)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        distributed = ctx.world_size > 1
        self.replica = DistributedDataParallel(self.model, forward_sync_buffers=False) if distributed else self.model

    def start(self) -> Progress:
        """Go on from the newest checkpoint, or from the beginning."""
        with self.ctx.restore() as folder:
            if folder is not None:
                return load_checkpoint(folder, self.model, self.optimizer)
        if isinstance(self.model.encoder, FeatureEncoder):
            self.model.encoder.standardise(*self._feature_statistics())
        return Progress()

    def train_epoch(self, epoch: int) -> float:
        """One pass over the training bags; returns the mean loss over them."""
        batches = global_batches(self.bags.split("train"), self.config.batch_size, self.config.seed, epoch)
        shares = [self._share(batch) for batch in batches]
        packed = self.bags.batches(group.bags for share in shares for group in share)
        total = 0.0
        for step, share in enumerate(shares):
            self._set_learning_rate(epoch + step / len(shares))
            total += self._step(share, packed, Dropout(self.config.seed, epoch, self.config.dropout))
        loss = self._sum_over_ranks(total) / len(shares)
        if not math.isfinite(loss):
            raise MILError(f"epoch {epoch}: the training loss is {loss}; lower learning_rate or use precision fp32")
        return loss

    def validate(self) -> Validation:
        """Loss and AUROC on the validation split; NaN where they are not defined."""
        said = self.predict("val")
        labels = np.array([self.bags.entries[index].label for index in said], dtype=np.int64)
        log_prob = np.array([said[index] for index in said], dtype=np.float64).reshape(-1, self.bags.classes)
        if len(labels) == 0:
            return Validation(math.nan, math.nan)
        loss = -log_prob[np.arange(len(labels)), labels].mean()
        return Validation(float(loss), macro_auroc(labels, log_prob))

    @torch.no_grad()
    def predict(self, split: SplitName) -> dict[int, list[float]]:
        """Log-probabilities of every bag of a split, on every rank, in order of the bags."""
        hand = deal(self.bags.split(split), self.bags.lengths, self.ctx.world_size)[self.ctx.rank]
        groups = micro_batches(hand, self.bags.lengths, self.budget)
        said: dict[int, list[float]] = {}
        for group, batch in zip(groups, self.bags.batches(groups), strict=True):
            log_prob = self.model(batch, None)
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
            save_checkpoint(Path(folder), self.model, self.optimizer, progress)
            self.ctx.report(epoch, metrics, Path(folder))

    def _share(self, batch: list[int]) -> list[_Group]:
        """This rank's groups of a global batch; DDP's mean over ranks of their gradients is that of the batch's mean.

        A bag within the budget is one rank's, whose loss counts world_size-fold; a larger one is computed on by all
        ranks, each holding a part and all of its loss. Those come first, so that the ranks meet in one order.
        """
        workers = self.ctx.world_size
        spread = [index for index in batch if workers > 1 and self.bags.lengths[index] > max(self.budget, workers)]
        rest = [index for index in batch if index not in spread]
        hand = deal(rest, self.bags.lengths, workers)[self.ctx.rank]
        groups = [_Group([index], 1.0 / len(batch), spread=True) for index in spread]
        dealt = micro_batches(hand, self.bags.lengths, self.budget)
        groups += [_Group(group, workers / len(batch), spread=False) for group in dealt]
        # a rank left without any joins the all-reduce with somebody's bag and a zero loss
        return groups or [_Group(batch[:1], 0.0, spread=False)]

    def _step(self, share: list[_Group], packed: Iterator[BagBatch], dropout: Dropout) -> float:
        """One optimizer step; returns this rank's part of the global batch's mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for place, (group, whole) in enumerate(zip(share, itertools.islice(packed, len(share)), strict=True), start=1):
            batch = whole.part(self.ctx.rank, self.ctx.world_size) if group.spread else whole
            with self._synchronised(last=place == len(share)):
                log_prob: Tensor = self.replica(batch, dropout)
                labels = batch.labels.to(self.ctx.device)
                loss = -log_prob.gather(1, labels[:, None]).sum() * group.scale
                torch.autograd.backward(loss)
            total += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return total / self.ctx.world_size

    def _synchronised(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel once per step, with the last micro-batch."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return contextlib.nullcontext()
        without: contextlib.AbstractContextManager[None] = self.replica.no_sync()
        return without

    def _set_learning_rate(self, epochs: float) -> None:
        """``lr = peak * (1 + cos(pi * epochs / all epochs)) / 2`` (Loshchilov, Hutter 2017)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * (1.0 + math.cos(math.pi * epochs / self.config.epochs)) / 2.0

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

    def _sum_over_ranks(self, value: float) -> float:
        if self.ctx.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.ctx.device)
        dist.all_reduce(total)
        return float(total.item())
