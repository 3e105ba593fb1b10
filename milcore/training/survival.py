"""Survival in training: validation, scales of the models, out-of-fold predictions."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from scipy.special import logit
from torch import Tensor

from milcore.cohort.label_changes import changes_text
from milcore.config import RunSpec, TrainConfig
from milcore.errors import InputError
from milcore.metrics.survival.concordance import harrell_c
from milcore.metrics.survival.discrete_hazard import cut_points
from milcore.metrics.survival.outcome import Outcome
from milcore.metrics.survival.summary import RiskPredictions, harrell_c_estimate
from milcore.mil.bags.bags import BagEntry, follow_up_arrays
from milcore.mil.cox import partial_likelihood
from milcore.mil.hazard import hazard_losses, hazard_risk, periods
from milcore.mil.inference import BagPrediction
from milcore.mil.model import MILModel
from milcore.training.out_of_fold import OutOfFold
from milcore.training.selection import Validation
from milcore.training.target import TrainingTarget


def validate_cox(
    entries: Sequence[BagEntry], score: Float[np.ndarray, "bag 1"], _: Float[Tensor, " constant"], __: TrainConfig
) -> Validation:
    """Negative log partial likelihood, a mean over events, and Harrell's C of bags.

    Both are NaN where no pair of bags is comparable: the likelihood is 0 there, whatever the scores.
    """
    time, event = follow_up_arrays(entries)
    if not _is_comparable(time, event):
        return Validation(math.nan, math.nan)
    loss = partial_likelihood(score[:, 0], time, event)
    return Validation(loss.loss, concordance(time, event, score[:, 0]))


def validate_hazards(
    entries: Sequence[BagEntry],
    logits: Float[np.ndarray, "bag interval"],
    ends: Float[Tensor, " interval"],
    _: TrainConfig,
) -> Validation:
    """Negative log-likelihood of hazards, a mean over bags, and Harrell's C of the risk."""
    (time, event), of_bags = follow_up_arrays(entries), torch.from_numpy(logits)
    losses = hazard_losses(of_bags, periods(time, event, ends.cpu().numpy()))
    return Validation(float(losses.mean()), concordance(time, event, hazard_risk(of_bags).numpy()))


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


@torch.no_grad()
def prepare_hazards(model: MILModel, entries: Sequence[BagEntry]) -> None:
    """Set the cut points, and first hazards: those of all training bags.

    The logit of an interval begins at that of ``(events + 1/2) / (at risk + 1)``: a life table, kept off 0 and 1.

    Raises:
        InputError: the events of the bags are of too few times for the intervals.
    """
    time, event = follow_up_arrays(entries)
    ends = cut_points(Outcome.of(time, event), len(model.constants))
    model.constants.copy_(torch.from_numpy(ends))
    at_risk, came = (each.sum(axis=0) for each in periods(time, event, ends))
    model.classifier.bias.copy_(torch.from_numpy(logit((came + 0.5) / (at_risk + 1.0))))


def risk_columns(
    entries: Sequence[BagEntry], predictions: Sequence[BagPrediction]
) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """Time, event and risk."""
    time, event = follow_up_arrays(entries)
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


def _out_of_fold(predictions: pa.Table, spec: RunSpec) -> OutOfFold:
    """Harrell's C of the patients that folds left out."""
    time, event, risk, fold = (predictions[name].to_numpy() for name in ("time", "event", "risk", "fold"))
    of_all = RiskPredictions(Outcome.of(time, event), risk, predictions["patient_id"].to_pylist())
    pooled = harrell_c_estimate(of_all, spec.train.seed)
    of_folds = tuple(concordance(time[fold == k], event[fold == k], risk[fold == k]) for k in range(spec.folds))
    return OutOfFold(spec.folds, len(predictions), pooled, pooled, of_folds, spec.train.target)


SURVIVAL_COX = TrainingTarget(
    prepare=None,
    validate=validate_cox,
    fit_scale=centre,
    columns=risk_columns,
    check_training=_check_training,
    out_of_fold=_out_of_fold,
)
SURVIVAL_HAZARD = SURVIVAL_COX._replace(prepare=prepare_hazards, validate=validate_hazards, fit_scale=None)
