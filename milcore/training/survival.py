"""Validation of survival: partial likelihood, and Harrell's C, by which epochs and trials rank."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from milcore.cohort.label_changes import changes_text
from milcore.errors import InputError
from milcore.metrics.survival.concordance import harrell_c
from milcore.metrics.survival.outcome import Outcome
from milcore.mil.bags.bags import BagEntry
from milcore.mil.inference import BagPrediction
from milcore.mil.model import MILModel
from milcore.mil.survival import follow_up_arrays, partial_likelihood
from milcore.training.selection import Validation
from milcore.training.target import TrainingTarget


def validate_risk(entries: Sequence[BagEntry], score: Float[np.ndarray, "bag 1"]) -> Validation:
    """Negative log partial likelihood, a mean over events, and Harrell's C of bags.

    Both are NaN where no pair of bags is comparable: the likelihood is 0 there, whatever the scores.
    """
    time, event = follow_up_arrays([entry.follow_up for entry in entries])
    if not _is_comparable(time, event):
        return Validation(math.nan, math.nan)
    loss = partial_likelihood(score[:, 0], time, event)
    return Validation(loss.loss, concordance(time, event, score[:, 0]))


def concordance(time: Float[np.ndarray, " bag"], event: np.ndarray, risk: Float[np.ndarray, " bag"]) -> float:
    """Harrell's C; NaN where no pair is comparable, or a risk is not finite."""
    try:
        return harrell_c(Outcome.of(time, event), risk)
    except InputError:
        return math.nan


def _is_comparable(time: Float[np.ndarray, " bag"], event: np.ndarray) -> bool:
    """True where some bag outlasts the first event."""
    first = time[event == 1].min(initial=math.inf)
    return bool(((time > first) | ((time == first) & (event == 0))).any())


@torch.no_grad()
def centre(model: MILModel, score: Float[np.ndarray, "bag 1"]) -> None:
    """Shift a model so that the mean score of its training bags is 0.

    The partial likelihood is the same for every shift. A score then is the log hazard ratio relative to that mean, and
    those of several models have one scale.
    """
    model.classifier.bias.sub_(float(score.mean()))


def risk_columns(
    entries: Sequence[BagEntry], predictions: Sequence[BagPrediction]
) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """Time, event and risk: log hazard ratio relative to the training mean."""
    time, event = follow_up_arrays([entry.follow_up for entry in entries])
    risk = pa.array([float(prediction.probability[0]) for prediction in predictions], pa.float64())
    return {"time": pa.array(time, pa.float64()), "event": pa.array(event, pa.int64())}, {"risk": risk}


def _check_training(entries: Sequence[BagEntry], _: Sequence[str]) -> None:
    """Check that every training bag has follow-up, and some an event.

    Raises:
        InputError: they have not.
    """
    without = [entry.bag_id for entry in entries if entry.follow_up is None]
    events = sum(entry.follow_up.event for entry in entries if entry.follow_up is not None)
    if without or not events:
        got = f"none of {len(without)} bag(s), such as {without[0]}" if without else f"no event in {len(entries)}"
        raise InputError(
            f"bags: expected training bags with time and event, an event in one at least, got {got}; allowed: bags "
            "with times and events; give them, or change splits"
        )
    bags_of = Counter(entry.patient_id for entry in entries)
    several = [f"{patient} has {count}" for patient, count in bags_of.items() if count > 1]
    if several:
        raise InputError(
            f"bags: expected one bag per patient with a survival target, got several of {changes_text(several)}; "
            "allowed: the instances of all slides of a patient in one bag"
        )


SURVIVAL = TrainingTarget(
    validate=validate_risk,
    fit_scale=centre,
    columns=risk_columns,
    check_training=_check_training,
)
