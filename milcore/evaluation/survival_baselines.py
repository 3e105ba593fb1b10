"""Baselines of survival on the run's own split: mean pooling, colour, and shuffled follow-up.

They are fitted on training patients and measured on the test split like the run. None of them is published as a model.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float

from milcore.config import TrainConfig
from milcore.errors import InputError
from milcore.evaluation.baselines import MEAN_NOTE, NO_PIXELS, bag_colours, shuffle_outcomes
from milcore.evaluation.report.survival_contents import SurvivalComparison
from milcore.metrics.classification import Estimate
from milcore.metrics.survival.cox import cox_regression
from milcore.metrics.survival.outcome import Outcome
from milcore.metrics.survival.summary import RiskPredictions, SurvivalMetrics, survival_metrics
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.inference import predict_bags
from milcore.mil.survival import follow_up_arrays
from milcore.store.catalogue import Catalogue
from milcore.store.sampling import SAMPLE
from milcore.training.context import LocalContext
from milcore.training.loop import train_model

COLOUR_NOTE = f"Cox model, linear in a slide's mean and standard deviation of RGB, {SAMPLE} patches each"
SHUFFLED_NOTE = "this model trained on follow-up dealt out at random: what luck looks like here"

# of bags, by their index
Risks = Mapping[int, float]


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

    def row(name: str, note: str, of: Bags, risk: Risks) -> SurvivalComparison:
        return SurvivalComparison.of(name, note, _measure(of, risk, times, config.seed))

    if (config.pooling, config.level) != ("mean", "embedding"):
        mean = config.model_copy(update={"pooling": "mean", "level": "embedding"})
        yield row("embedding-mean pooling", MEAN_NOTE, bags, _train(mean, bags, device))
    colour = _colour(bags, catalogue, config.seed)
    if isinstance(colour, Estimate):
        yield SurvivalComparison("slide colour", COLOUR_NOTE, colour, colour, colour)
    else:
        yield row("slide colour", COLOUR_NOTE, bags, colour)
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
    outcome = Outcome.of(*follow_up_arrays([entry.follow_up for entry in entries]))
    of_bags = [sites.get(entry.slides[0], "") for entry in entries]
    return RiskPredictions(outcome, risk, [entry.patient_id for entry in entries], of_bags if any(of_bags) else ())


def _train(config: TrainConfig, bags: Bags, device: torch.device) -> Risks:
    """Risk of training and test bags by a model that is not kept."""
    model = train_model(config, bags, LocalContext(None, device)).model
    predictions = predict_bags([model], bags, [*bags.split("train"), *bags.split("test")], device)
    return {index: float(each.probability[0]) for index, each in predictions.items()}


def _measure(bags: Bags, risk: Risks, times: Sequence[float], seed: int) -> SurvivalMetrics:
    training, test = (
        risk_predictions(
            [bags.entries[index] for index in bags.split(split)],
            np.array([risk[index] for index in bags.split(split)], np.float64),
            {},
        )
        for split in ("train", "test")
    )
    return survival_metrics(test, training, seed, np.array(times, np.float64))


def _colour(bags: Bags, catalogue: Catalogue, seed: int) -> Risks | Estimate:
    """Risk of training and test bags by a Cox model of colours.

    NaN with a reason where it cannot be fitted.
    """
    train, test = bags.split("train"), bags.split("test")
    entries = [bags.entries[index] for index in (*train, *test)]
    if not all(catalogue.slide(slide_id).has_patches for entry in entries for slide_id in entry.slides):
        return NO_PIXELS
    of_bags = bag_colours(entries, catalogue, seed)
    colours = np.array([of_bags[entry.bag_id] for entry in entries])
    follow_up = follow_up_arrays([entry.follow_up for entry in entries[: len(train)]])
    try:
        model = cox_regression(Outcome.of(*follow_up), colours[: len(train)])
    except InputError as error:
        return Estimate(math.nan, reason=error.line)
    return dict(zip((*train, *test), model.risk(colours).tolist(), strict=True))
