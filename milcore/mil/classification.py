"""Classification of bags: log-probabilities of the classes, and the cross-entropy.

Two classes share one logit.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from milcore.config import TrainConfig
from milcore.mil.bags.bags import BagEntry
from milcore.mil.target import BagLoss, ModelTarget


def class_log_prob(of_class: Float[Tensor, "bag sign logit"]) -> Float[Tensor, "bag class"]:
    """Log-probabilities of the classes.

    Of two those of their logit, of more the softmax of their log-odds.
    """
    if of_class.shape[2] == 1:
        return of_class[:, :, 0]
    return torch.log_softmax(of_class[:, 1] - of_class[:, 0], dim=1)


def log_odds(log_prob: Float[Tensor, "bag class"], label: int, _: Tensor) -> Float[Tensor, " bag"]:
    """Log-odds of a class against all others."""
    others = [k for k in range(log_prob.shape[1]) if k != label]
    return log_prob[:, label] - torch.logsumexp(log_prob[:, others], dim=1)


def class_logit(logits: Float[Tensor, "row logit"], label: int, _: Tensor) -> Float[Tensor, " row"]:
    """Logit for a class; two classes share one, that of the positive class."""
    return logits[:, 0] * (1 if label == 1 else -1) if logits.shape[1] == 1 else logits[:, label]


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


def _losses(log_prob: Tensor, entries: Sequence[BagEntry], _: Tensor, config: TrainConfig) -> Tensor:
    labels = torch.tensor([entry.label for entry in entries], device=log_prob.device)
    return bag_losses(log_prob, labels, config.label_smoothing)


CLASSIFICATION = ModelTarget(
    logits=lambda classes, _: 1 if classes == 2 else classes,
    width=lambda classes, _: classes,
    constants=None,
    output=class_log_prob,
    values=lambda log_prob, *_: log_prob.exp(),
    logit_of=class_logit,
    contrast=log_odds,
    loss=BagLoss(_losses),
)
