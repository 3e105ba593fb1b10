"""Baselines of regression: the training mean, mean pooling, colour, and shuffled values.

They are fitted on the training bags of the run's own split and measured on its test bags like the run. None of them is
published as a model.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LinearRegression

from milcore.config import TrainConfig
from milcore.evaluation.baselines import MEAN_NOTE, NO_PIXELS, bag_colours, shuffle_outcomes
from milcore.evaluation.report.regression_contents import RegressionComparison
from milcore.metrics.regression.summary import ValuePredictions, regression_metrics
from milcore.mil.bags.bags import BagEntry, Bags, value_array
from milcore.mil.inference import predict_bags
from milcore.store.catalogue import Catalogue
from milcore.store.sampling import SAMPLE
from milcore.training.context import LocalContext
from milcore.training.loop import train_model

CONSTANT_NOTE = "the mean of the training values for every bag, whatever is on the slide"
COLOUR_NOTE = f"linear in a slide's mean and standard deviation of RGB, {SAMPLE} patches each, by least squares"
SHUFFLED_NOTE = "this model trained on values dealt out at random: what luck looks like here"


def compare_values(
    config: TrainConfig, bags: Bags, catalogue: Catalogue, device: torch.device
) -> Iterator[RegressionComparison]:
    """Train and measure the baselines one by one.

    Args:
        config: of the run; its seed also shuffles values and draws the patches whose colour is read.
        bags: of the run, all splits.
        catalogue: of the store whose patches give the colours.
        device: of the baselines that are trained.
    """
    train, test = ([bags.entries[index] for index in bags.split(split)] for split in ("train", "test"))

    def row(name: str, note: str, predicted: Float[np.ndarray, " bag"]) -> RegressionComparison:
        return RegressionComparison.of(
            name, note, regression_metrics(value_predictions(test, predicted, {}), config.seed)
        )

    yield row("training mean", CONSTANT_NOTE, np.full(len(test), value_array(train).mean()))
    if (config.pooling, config.level) != ("mean", "embedding"):
        mean = config.model_copy(update={"pooling": "mean", "level": "embedding"})
        yield row("embedding-mean pooling", MEAN_NOTE, _train(mean, bags, device))
    if all(catalogue.slide(slide_id).has_patches for entry in (*train, *test) for slide_id in entry.slides):
        yield row("slide colour", COLOUR_NOTE, _colour(train, test, catalogue, config.seed))
    else:
        yield RegressionComparison("slide colour", COLOUR_NOTE, NO_PIXELS, NO_PIXELS, NO_PIXELS)
    shuffled = _train(config, shuffle_outcomes(bags, config.seed), device)
    yield row("shuffled training values", SHUFFLED_NOTE, shuffled)


def value_predictions(
    entries: Sequence[BagEntry], predicted: Float[np.ndarray, " bag"], sites: Mapping[str, str]
) -> ValuePredictions:
    """True and predicted value and, where the manifest has some, site of bags.

    Args:
        entries: of the bags, each with a value.
        predicted: of each bag.
        sites: by slide; a bag has that of its first.
    """
    of_bags = [sites.get(entry.slides[0], "") for entry in entries]
    patients = [entry.patient_id for entry in entries]
    return ValuePredictions(value_array(entries), predicted, patients, of_bags if any(of_bags) else ())


def _train(config: TrainConfig, bags: Bags, device: torch.device) -> Float[np.ndarray, " bag"]:
    """Values of the test bags, predicted by a model that is not kept."""
    model = train_model(config, bags, LocalContext(None, device)).model
    predictions = predict_bags([model], bags, bags.split("test"), device)
    return np.array([prediction.probability[0] for prediction in predictions.values()], np.float64)


def _colour(
    train: Sequence[BagEntry], test: Sequence[BagEntry], catalogue: Catalogue, seed: int
) -> Float[np.ndarray, " bag"]:
    """Values of the test bags by least squares on colours."""
    colours = bag_colours([*train, *test], catalogue, seed)
    if not test:
        return np.zeros(0)
    model = LinearRegression().fit([colours[entry.bag_id] for entry in train], value_array(train))
    predicted: np.ndarray = model.predict([colours[entry.bag_id] for entry in test])
    return predicted
