"""The decision rule: threshold and temperature, chosen on validation."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from milcore.evaluation.run_predictions import RunPredictions, SplitPredictions
from milcore.metrics.calibration import Temperature, fit_temperature
from milcore.metrics.classification import (
    Threshold,
    choose_threshold,
)


class DecisionRule(NamedTuple):
    """How probabilities become calls and calibrated probabilities; ``threshold`` is None for more than two classes."""

    threshold: Threshold | None
    temperature: Temperature

    def call(self, probability: Float[np.ndarray, "bag class"]) -> Int[np.ndarray, " bag"]:
        """The class called for each bag: by threshold, or the likeliest."""
        if self.threshold is None:
            likeliest: np.ndarray = probability.argmax(axis=1)
            return likeliest
        return (probability[:, 1] >= self.threshold.value).astype(np.int64)


def choose_rule(val: SplitPredictions) -> DecisionRule:
    """Threshold and temperature from the validation split alone."""
    temperature = fit_temperature(val.labels, val.probability)
    if val.probability.shape[1] > 2:
        return DecisionRule(None, temperature)
    return DecisionRule(choose_threshold(val.labels, val.probability[:, 1]), temperature)


def predicted_classes(run: RunPredictions, rule: DecisionRule) -> dict[int, int]:
    """The predicted class of each test bag, by its index."""
    calls = rule.call(run.split("test").probability)
    return {index: int(label) for index, label in zip(run.bags.split("test"), calls, strict=True)}
