"""Survival by discrete-time hazards: a logit of each interval, and the likelihood with censoring.

The hazard ``h_k = sigmoid(logit_k)`` is the probability of the event in interval k of a patient who survived those
before; survival at its end is ``S_k = prod_(j <= k) (1 - h_j)``. The cut points, where intervals end, are quantiles of
the training patients' event times and are kept with the weights.

Axes: bag, interval.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from milcore.config import TrainConfig
from milcore.metrics.survival.discrete_hazard import interpolation
from milcore.mil.bags.bags import BagEntry, follow_up_arrays
from milcore.mil.cox import signed_logit
from milcore.mil.target import BagLoss, ModelTarget, TargetConstants


class Periods(NamedTuple):
    """Person-period rows of bags: the intervals at risk, and that of the event.

    Args:
        at_risk: 1 in each interval that was survived, or in which the event came.
        event: 1 in the interval in which the event came.
    """

    at_risk: Int[np.ndarray, "bag interval"]
    event: Int[np.ndarray, "bag interval"]


def periods(
    time: Float[np.ndarray, " bag"], event: Int[np.ndarray, " bag"], ends: Float[np.ndarray, " interval"]
) -> Periods:
    """Intervals in which each bag was at risk.

    A patient with the event in interval k survived those before it. A censored patient survived an interval where it
    was followed to its middle at least, and tells nothing of later ones. Who is followed beyond the last cut point
    survived all.

    Source: Gensheimer, Narasimhan 2019, PeerJ 7:e6257, and the published code; there intervals hold their beginning,
    here their end, so that a cut point, itself the time of an event, has it before it.

    Args:
        time: to the event or to censoring.
        event: 1 where the event came, 0 where the patient was censored.
        ends: cut points, ascending.
    """
    middles = (np.concatenate([[0.0], ends[:-1]]) + ends) / 2
    interval, had_event = np.arange(len(ends)), event[:, None] == 1
    own = np.searchsorted(ends, time)[:, None]
    survived = np.where(had_event, interval < own, middles <= time[:, None])
    came = had_event & (interval == own)
    return Periods((survived | came).astype(np.int64), came.astype(np.int64))


def log_survival(logit: Float[Tensor, "bag interval"]) -> Float[Tensor, "bag interval"]:
    """Log of survival at cut points: ``sum_(j <= k) log(1 - h_j)``."""
    return functional.logsigmoid(-logit).cumsum(dim=1)


def hazard_risk(logit: Float[Tensor, "bag interval"]) -> Float[Tensor, " bag"]:
    """Risk of each bag: minus the expected number of intervals survived, ``-sum_k S_k``.

    Between -K and 0; higher for an earlier event.

    Source: Chen et al. 2021, arXiv 2107.13048, whose published code ranks patients by it.
    """
    return -log_survival(logit).exp().sum(dim=1)


def hazard_losses(logit: Float[Tensor, "bag interval"], of_bags: Periods) -> Float[Tensor, " bag"]:
    """Negative log-likelihood of each bag.

    ``-sum_k [ y_k log h_k + (1 - y_k) log(1 - h_k) ]`` over the intervals in which the bag was at risk, with y_k = 1
    where the event came: the cross-entropy of person-period rows. No term is weighed against another.

    Sources: Gensheimer, Narasimhan 2019, PeerJ 7:e6257; Zadeh, Schmid 2020, IEEE TPAMI 43:3126-3137, which
    counts the interval of censoring as survived, whenever in it the patient was censored.

    Args:
        logit: of the hazard of each interval.
        of_bags: their person-period rows.
    """
    at_risk, event = (torch.from_numpy(each).to(logit) for each in of_bags)
    return functional.binary_cross_entropy_with_logits(logit, event, at_risk, reduction="none").sum(dim=1)


def _losses(logit: Tensor, entries: Sequence[BagEntry], ends: Tensor, _: TrainConfig) -> Tensor:
    return hazard_losses(logit, periods(*follow_up_arrays(entries), ends.cpu().numpy()))


def _intervals(_: int, config: TrainConfig) -> int:
    return config.hazard_intervals


def _values(logit: Tensor, ends: Tensor, times: Tensor) -> Float[Tensor, "bag value"]:
    """Risk by the model's own intervals, and survival at the times."""
    weights = torch.from_numpy(interpolation(ends.cpu().numpy(), times.cpu().numpy())).to(logit)
    survival = (log_survival(logit) @ weights).exp()
    return torch.cat([hazard_risk(logit)[:, None], survival], dim=1)


def _mean_logit(logits: Shaped[Tensor, "row interval"], _: int, __: Tensor) -> Tensor:
    """Mean over the intervals."""
    return logits.mean(dim=1)


def _contrast(logit: Tensor, _: int, __: Tensor) -> Tensor:
    return hazard_risk(logit)


SURVIVAL_HAZARD = ModelTarget(
    logits=_intervals,
    width=_intervals,
    constants=TargetConstants("cut_points", lambda config: config.hazard_intervals),
    output=signed_logit,
    values=_values,
    logit_of=_mean_logit,
    contrast=_contrast,
    loss=BagLoss(_losses),
)
