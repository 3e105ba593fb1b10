"""Probabilities of logits and their logarithms, without cancellation.

Axes: row, bag, class, value (columns to pool), pooled.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SMALLEST_PROBABILITY = 1e-7


def log_sigmoids(logit: Float[Tensor, "row class"]) -> Float[Tensor, "row 2 class"]:
    """(log(1 - p), log p) for p = sigmoid(logit)."""
    return torch.stack([functional.logsigmoid(-logit), functional.logsigmoid(logit)], dim=1)


def probabilities(logit: Float[Tensor, "row class"]) -> Float[Tensor, "row value"]:
    """(1 - p, p) of all classes for p = sigmoid(logit), each without cancellation."""
    return torch.cat([torch.sigmoid(-logit), torch.sigmoid(logit)], dim=1)


def log_of(probability: Float[Tensor, "bag pooled"]) -> Float[Tensor, "bag 2 class"]:
    """Logarithm of a probability clamped from below, ``log max(p, 1e-7)``.

    One certain and wrong bag cannot dominate the loss, and no gradient is infinite.
    """
    return probability.clamp_min(SMALLEST_PROBABILITY).log().reshape(len(probability), 2, -1)
