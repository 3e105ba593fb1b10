"""The decision rule: threshold and temperature, chosen on validation."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from milcore.evaluation.run_predictions import RunPredictions, SplitPredictions
from milcore.metrics.calibration import Temperature, fit_temperature
from milcore.metrics.classification import Threshold, choose_threshold


class DecisionRule(NamedTuple):
    """Classification threshold and calibration temperature.

    ``threshold`` is None for more than two classes: the most probable class is predicted.
    """

    threshold: Threshold | None
    temperature: Temperature

    def predict(self, probability: Float[np.ndarray, "bag class"]) -> Int[np.ndarray, " bag"]:
        """Predicted class of each bag, by threshold or the most probable one."""
        if self.threshold is None:
            likeliest: np.ndarray = probability.argmax(axis=1)
            return likeliest
        return (probability[:, 1] >= self.threshold.value).astype(np.int64)


def choose_rule(val: SplitPredictions) -> DecisionRule:
    """Choose threshold and temperature on the validation split alone."""
    temperature = fit_temperature(val.labels, val.probability)
    if val.probability.shape[1] > 2:
        return DecisionRule(None, temperature)
    return DecisionRule(choose_threshold(val.labels, val.probability[:, 1]), temperature)


def predicted_classes(run: RunPredictions, rule: DecisionRule) -> dict[int, int]:
    """Predicted class of each test bag, by its index."""
    predicted = rule.predict(run.split("test").probability)
    return {index: int(label) for index, label in zip(run.bags.split("test"), predicted, strict=True)}
