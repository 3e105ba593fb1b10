"""Baselines of survival on the run's own split: mean pooling, colour, and shuffled follow-up.

They are fitted on training patients and measured on the test split like the run. None of them is published as a model.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from milcore.config import Target, TrainConfig
from milcore.errors import InputError
from milcore.evaluation.baselines import MEAN_NOTE, NO_PIXELS, bag_colours, shuffle_outcomes
from milcore.evaluation.report.survival_contents import SurvivalComparison
from milcore.evaluation.survival_curves import SURVIVAL_MODELS
from milcore.metrics.classification import Estimate
from milcore.metrics.survival.cox import cox_regression
from milcore.metrics.survival.outcome import Outcome
from milcore.metrics.survival.summary import RiskPredictions, SurvivalMetrics, survival_metrics
from milcore.mil.bags.bags import BagEntry, Bags, follow_up_arrays
from milcore.mil.inference import mean_constants, predict_bags
from milcore.store.catalogue import Catalogue
from milcore.store.sampling import SAMPLE
from milcore.training.context import LocalContext
from milcore.training.loop import train_model

COLOUR_NOTE = f"Cox model, linear in a slide's mean and standard deviation of RGB, {SAMPLE} patches each"
SHUFFLED_NOTE = "this model trained on follow-up dealt out at random: what luck looks like here"


class _Baseline(NamedTuple):
    """Predictions of a baseline.

    Args:
        target: of its model.
        values: of training and test bags by their index, as that target reports them.
        cut_points: times at which the model predicts survival; empty where it does not.
    """

    target: Target
    values: Mapping[int, Float[np.ndarray, " value"]]
    cut_points: Float[np.ndarray, " time"]


def compare_risks(
    config: TrainConfig, bags: Bags, catalogue: Catalogue, times: Sequence[float], device: torch.device
) -> Iterator[SurvivalComparison]:
    """Train and measure the baselines one by one.

    Args:
        config: of the run; its seed also shuffles follow-up and draws the patches whose colour is read.
        bags: of the run, all splits.
        catalogue: of the store whose patches give the colours.
        times: at which the run is measured.
        device: of the baselines that are trained.
    """

    def row(name: str, note: str, of: Bags, baseline: _Baseline | Estimate) -> SurvivalComparison:
        if isinstance(baseline, Estimate):
            return SurvivalComparison(name, note, baseline, baseline, baseline)
        return SurvivalComparison.of(name, note, _measure(of, baseline, times, config.seed))

    if (config.pooling, config.level) != ("mean", "embedding"):
        mean = config.model_copy(update={"pooling": "mean", "level": "embedding"})
        yield row("embedding-mean pooling", MEAN_NOTE, bags, _train(mean, bags, device))
    yield row("slide colour", COLOUR_NOTE, bags, _colour(bags, catalogue, config.seed))
    others = shuffle_outcomes(bags, config.seed)
    yield row("shuffled training follow-up", SHUFFLED_NOTE, others, _train(config, others, device))


def risk_predictions(
    entries: Sequence[BagEntry], risk: Float[np.ndarray, " bag"], sites: Mapping[str, str]
) -> RiskPredictions:
    """Outcome, risk and, where the manifest has some, site of bags.

    Args:
        entries: of the bags, each with follow-up.
        risk: of each bag.
        sites: by slide; a bag has that of its first.
    """
    outcome = Outcome.of(*follow_up_arrays(entries))
    of_bags = [sites.get(entry.slides[0], "") for entry in entries]
    return RiskPredictions(outcome, risk, [entry.patient_id for entry in entries], of_bags if any(of_bags) else ())


def _train(config: TrainConfig, bags: Bags, device: torch.device) -> _Baseline | Estimate:
    """Predictions of a model that is not kept.

    NaN with a reason where the follow-up that was dealt out ends too few intervals of time.
    """
    try:
        model = train_model(config, bags, LocalContext(None, device)).model
    except InputError as error:
        return Estimate(math.nan, reason=error.line)
    predictions = predict_bags([model], bags, [*bags.split("train"), *bags.split("test")], device)
    values = {index: each.probability for index, each in predictions.items()}
    return _Baseline(config.target, values, mean_constants([model]).numpy())


def _measure(bags: Bags, baseline: _Baseline, times: Sequence[float], seed: int) -> SurvivalMetrics:
    values = [np.array([baseline.values[index] for index in bags.split(split)]) for split in ("train", "test")]
    training, test = (
        risk_predictions([bags.entries[index] for index in bags.split(split)], of_split[:, 0], {})
        for split, of_split in zip(("train", "test"), values, strict=True)
    )
    curves, at = SURVIVAL_MODELS[baseline.target].curves, np.array(times, np.float64)
    survival = curves(values[1], training, baseline.cut_points).survival(at)
    return survival_metrics(test, training, seed, at, survival)


def _colour(bags: Bags, catalogue: Catalogue, seed: int) -> _Baseline | Estimate:
    """Predictions of a Cox model of colours.

    NaN with a reason where it cannot be fitted.
    """
    train, test = bags.split("train"), bags.split("test")
    entries = [bags.entries[index] for index in (*train, *test)]
    if not all(catalogue.slide(slide_id).has_patches for entry in entries for slide_id in entry.slides):
        return NO_PIXELS
    of_bags = bag_colours(entries, catalogue, seed)
    colours = np.array([of_bags[entry.bag_id] for entry in entries])
    outcome = Outcome.of(*follow_up_arrays(entries[: len(train)]))
    try:
        model = cox_regression(outcome, colours[: len(train)])
    except InputError as error:
        return Estimate(math.nan, reason=error.line)
    risk = dict(zip((*train, *test), model.risk(colours)[:, None], strict=True))
    return _Baseline("survival_cox", risk, np.zeros(0))
