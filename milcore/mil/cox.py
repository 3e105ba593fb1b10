"""Survival by Cox's proportional hazards: score of a bag, and partial likelihood.

The score s of a bag is its log hazard ratio. The loss looks across bags: each patient with an event is compared with
all at risk at that time. It is computed in float64 from the scores of a whole global batch, with its exact derivative.

Axes: bag, time (distinct times, ascending), term (one for each event, those of a time one after another).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from milcore.config import TrainConfig
from milcore.mil.bags.bags import BagEntry, follow_up_arrays
from milcore.mil.target import BatchLoss, JointLoss, ModelTarget


class _Terms(NamedTuple):
    """Logarithms of the denominators of Efron's partial likelihood.

    Args:
        place: of the time of each bag.
        at: the time of each term.
        share: l / d of the l-th of d events of one time, from 0.
        log_denominator: log of the sum over those at risk less the share of the sum over the events of the time.
    """

    place: Int[np.ndarray, " bag"]
    at: Int[np.ndarray, " term"]
    share: Float[np.ndarray, " term"]
    log_denominator: Float[np.ndarray, " term"]


def partial_likelihood(
    score: Float[np.ndarray, " bag"], time: Float[np.ndarray, " bag"], event: Int[np.ndarray, " bag"]
) -> BatchLoss:
    """Negative log partial likelihood, ties by Efron, a mean over events, with its derivative.

    ``L = 1/n sum_t ( sum_l log( sum_{i in R} e^{s_i} - l/d sum_{i in D} e^{s_i} ) - sum_{i in D} s_i )`` over the times
    t of events, with n events in all, R those at risk at t, D the d events at t, l = 0 … d - 1. Without an event it is
    0. Sums of exponentials are kept as logarithms, so that no score overflows.

    Source: Efron 1977, Journal of the American Statistical Association 72:557-565.

    Args:
        score: log hazard ratio of each bag.
        time: to the event or to censoring.
        event: 1 where the event came, 0 where the patient was censored.
    """
    events = int(event.sum())
    if events == 0:
        return BatchLoss(0.0, 0.0, np.zeros_like(score))
    terms = _terms(score, time, event)
    loss = terms.log_denominator.sum() - score[event == 1].sum()
    return BatchLoss(float(loss / events), float(events), _derivative(score, event, terms) / events)


def _terms(score: np.ndarray, time: np.ndarray, event: np.ndarray) -> _Terms:
    times, place = np.unique(time, return_inverse=True)
    with_event = event == 1
    of_time, of_events = np.full((2, len(times)), -np.inf)
    np.logaddexp.at(of_time, place, score)
    np.logaddexp.at(of_events, place[with_event], score[with_event])
    at_risk = np.logaddexp.accumulate(of_time[::-1])[::-1]
    count = np.bincount(place[with_event], minlength=len(times))
    at = np.repeat(np.arange(len(times)), count)
    share = (np.arange(len(at)) - (count.cumsum() - count)[at]) / count[at]
    log_denominator = at_risk[at] + np.log1p(-share * np.exp(of_events[at] - at_risk[at]))
    return _Terms(place, at, share, log_denominator)


def _derivative(score: np.ndarray, event: np.ndarray, terms: _Terms) -> Float[np.ndarray, " bag"]:
    """Derivative of the sum over terms, by each score.

    ``e^{s_j} sum of the weights of the terms that j is in, less 1 of an event``. A weight is 1 / denominator, and
    (1 - l/d) / denominator of the terms of the bag's own event. All are positive: nothing is subtracted but the 1.
    """
    of_time, own = np.full((2, 1 + int(terms.place.max())), -np.inf)
    np.logaddexp.at(of_time, terms.at, -terms.log_denominator)
    np.logaddexp.at(own, terms.at, np.log1p(-terms.share) - terms.log_denominator)
    until = np.logaddexp.accumulate(of_time)
    before = np.concatenate([[-np.inf], until[:-1]])
    weight = np.where(event == 1, np.logaddexp(before, own)[terms.place], until[terms.place])
    derivative: np.ndarray = np.exp(score + weight) - event
    return derivative


def signed_logit(of_class: Float[Tensor, "bag sign logit"]) -> Float[Tensor, "bag logit"]:
    """The logits themselves, from log-sigmoids of minus and plus them."""
    return of_class[:, 1] - of_class[:, 0]


def _one(_: int, __: TrainConfig) -> int:
    return 1


def _contrast(score: Tensor, _: int, __: Tensor) -> Tensor:
    return score[:, 0]


def _batch_loss(score: Float[np.ndarray, "bag 1"], entries: Sequence[BagEntry]) -> BatchLoss:
    return partial_likelihood(score[:, 0], *follow_up_arrays(entries))


def _events(entries: Sequence[BagEntry]) -> float:
    return float(follow_up_arrays(entries)[1].sum())


SURVIVAL_COX = ModelTarget(
    logits=_one,
    width=_one,
    constants=None,
    output=signed_logit,
    values=lambda score, *_: score,
    logit_of=_contrast,
    contrast=_contrast,
    loss=JointLoss(_batch_loss, _events),
)
