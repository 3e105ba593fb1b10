"""Optimisation: AdamW with gradient clipping, a learning-rate schedule, a moving average of weights.

Sources: AdamW, Loshchilov, Hutter 2019, arXiv 1711.05101; cosine, the same 2017, arXiv 1608.03983; averaging, Polyak,
Juditsky 1992.
"""

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from milcore.config import TrainConfig


def learning_rate(config: TrainConfig, epochs: float) -> float:
    """Learning rate of a step.

    ``peak * epochs / warmup`` during warm-up; then ``peak``, or ``peak * (1 + cos(pi * t)) / 2`` with t from 0 to 1.

    Args:
        config: peak, schedule, warm-up and number of epochs.
        epochs: passes over the training bags before the step; a fraction within an epoch.
    """
    if epochs < config.warmup_epochs:
        return config.learning_rate * epochs / config.warmup_epochs
    if config.schedule == "constant":
        return config.learning_rate
    t = (epochs - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    return config.learning_rate * (1.0 + math.cos(math.pi * t)) / 2.0


class Optimisation:
    """Optimizer of a model and, if configured, the moving average of its weights.

    ``ema <- decay * ema + (1 - decay) * weights`` after every step; it starts as the weights after the first step.
    """

    def __init__(self, config: TrainConfig, model: nn.Module) -> None:
        self.config, self.model = config, model
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.ema: AveragedModel | None = None
        if config.ema_decay > 0.0:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))  # type: ignore[no-untyped-call]  # torch ships it so

    @property
    def eval_model(self) -> nn.Module:
        """Model to validate and publish: the moving average once updated, else the model."""
        if self.ema is None or int(self.ema.n_averaged) == 0:
            return self.model
        return self.ema.module

    def step(self, epochs: float) -> None:
        """Clip the gradients, update the weights and their moving average.

        Args:
            epochs: passes over the training bags before this step; a fraction within an epoch.
        """
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, epochs)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
