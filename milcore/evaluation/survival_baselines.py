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
from milcore.evaluation.baselines import MEAN_NOTE, bag_colours
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
NO_PIXELS = "the store was imported without patches, so there is no colour to read"

Row = tuple[str, str, SurvivalMetrics]


def compare_risks(config: TrainConfig, bags: Bags, catalogue: Catalogue, device: torch.device) -> Iterator[Row]:
    """Train and measure the baselines one by one: name, note and metrics.

    Args:
        config: of the run; its seed also shuffles follow-up and draws the patches whose colour is read.
        bags: of the run, all splits.
        catalogue: of the store whose patches give the colours.
        device: of the baselines that are trained.
    """
    if (config.pooling, config.level) != ("mean", "embedding"):
        mean = config.model_copy(update={"pooling": "mean", "level": "embedding"})
        yield "embedding-mean pooling", MEAN_NOTE, _train(mean, bags, device)
    yield "slide colour", COLOUR_NOTE, _colour(bags, catalogue, config.seed)
    yield "shuffled training follow-up", SHUFFLED_NOTE, _train(config, shuffle_follow_up(bags, config.seed), device)


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


def shuffle_follow_up(bags: Bags, seed: int) -> Bags:
    """The same bags with follow-up permuted inside training and inside validation."""
    random = np.random.default_rng(seed)
    follow_ups = [entry.follow_up for entry in bags.entries]
    for split in ("train", "val"):
        indices = bags.split(split)
        for index, other in zip(indices, random.permutation(indices).tolist(), strict=True):
            follow_ups[index] = bags.entries[other].follow_up
    entries = [entry._replace(follow_up=own) for entry, own in zip(bags.entries, follow_ups, strict=True)]
    index_of = {entry.bag_id: k for k, entry in enumerate(entries)}
    return Bags(entries, lambda entry: bags[index_of[entry.bag_id]].instances, bags.cache_bytes)


def _train(config: TrainConfig, bags: Bags, device: torch.device) -> SurvivalMetrics:
    """Train a model, writing nothing, and measure it on the test bags."""
    model = train_model(config, bags, LocalContext(None, device)).model
    predictions = predict_bags([model], bags, [*bags.split("train"), *bags.split("test")], device)
    return _measure(bags, {index: float(each.probability[0]) for index, each in predictions.items()}, config.seed)


def _measure(bags: Bags, risk: Mapping[int, float], seed: int) -> SurvivalMetrics:
    training, test = (
        risk_predictions(
            [bags.entries[index] for index in bags.split(split)],
            np.array([risk[index] for index in bags.split(split)], np.float64),
            {},
        )
        for split in ("train", "test")
    )
    return survival_metrics(test, training, seed)


def _colour(bags: Bags, catalogue: Catalogue, seed: int) -> SurvivalMetrics:
    """Cox model of colours, undefined where they cannot be read or fitted."""
    indices = {split: bags.split(split) for split in ("train", "test")}
    chosen = [bags.entries[index] for split in indices.values() for index in split]
    whole = [*indices["train"], *indices["test"]]
    if not all(catalogue.slide(slide_id).has_patches for entry in chosen for slide_id in entry.slides):
        return _undefined(_measure(bags, dict.fromkeys(whole, 0.0), seed), NO_PIXELS)
    colours = bag_colours(chosen, catalogue, seed)
    values = {index: colours[bags.entries[index].bag_id] for index in whole}
    follow_up = follow_up_arrays([bags.entries[index].follow_up for index in indices["train"]])
    try:
        model = cox_regression(Outcome.of(*follow_up), np.array([values[index] for index in indices["train"]]))
    except InputError as error:
        return _undefined(_measure(bags, dict.fromkeys(whole, 0.0), seed), error.line)
    return _measure(bags, {index: float(model.risk(row[None])[0]) for index, row in values.items()}, seed)


def _undefined(metrics: SurvivalMetrics, reason: str) -> SurvivalMetrics:
    metrics.overall.update({name: Estimate(math.nan, reason=reason) for name in metrics.overall})
    return metrics
