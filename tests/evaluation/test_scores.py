"""The test split in numbers: by bag, by patient, by rules of another split."""

import math

import numpy as np
import pytest

from milcore.evaluation.attention.checks import attention_warnings
from milcore.evaluation.decision import DecisionRule, choose_rule
from milcore.evaluation.run_predictions import SplitPredictions
from milcore.evaluation.scores import measure, roc_of
from milcore.metrics.calibration import Temperature
from milcore.metrics.classification import Estimate, Threshold
from milcore.mil.bags.bags import BagEntry
from milcore.mil.inference import BagPrediction


def split_of(labels: list[int], probability: list[float], patients: list[str]) -> SplitPredictions:
    entries = [
        BagEntry(f"s{k}", patient, label, "test", (f"s{k}",), (1,))
        for k, (patient, label) in enumerate(zip(patients, labels, strict=True))
    ]
    positive = np.array(probability)
    return SplitPredictions(entries, np.array(labels), np.stack([1 - positive, positive], axis=1))


RULE = DecisionRule(Threshold(0.5, "by hand"), Temperature(2.0, "by hand"))


def test_a_patient_s_probability_and_label_are_the_highest_of_their_slides() -> None:
    """Slides: a 0.2/-, a 0.9/+; b 0.6/-, b 0.3/-; c 0.4/+. Patients: a 0.9/+, b 0.6/-, c 0.4/+: one pair of two."""
    test = split_of([0, 1, 0, 0, 1], [0.2, 0.9, 0.6, 0.3, 0.4], ["a", "a", "b", "b", "c"])
    metrics = measure(test, RULE, seed=0)
    assert metrics.overall["auroc"].value == pytest.approx(5 / 6)
    assert metrics.of_patients["auroc"].value == pytest.approx(1 / 2)
    assert metrics.of_patients["sensitivity"].value == pytest.approx(1 / 2)
    assert metrics.of_patients["specificity"].value == 0.0
    assert metrics.of_patients["accuracy"].value == pytest.approx(1 / 3)
    alone = measure(split_of([0, 1], [0.2, 0.9], ["a", "b"]), RULE, seed=0)
    assert alone.of_patients == {}


def test_figures_after_the_temperature_are_of_its_probabilities() -> None:
    """Odds 9 and 1/9 become 3 and 1/3: Brier 0.01 before, 1/16 after, and the calls stay."""
    metrics = measure(split_of([0, 1], [0.1, 0.9], ["a", "b"]), RULE, seed=0)
    assert metrics.overall["brier"].value == pytest.approx(0.01)
    assert metrics.calibrated["brier"].value == pytest.approx(1 / 16)
    assert metrics.calibrated["ece"].value == pytest.approx(1 / 4)


def test_the_rule_is_made_of_the_split_it_is_given() -> None:
    rule = choose_rule(split_of([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.8], ["a", "b", "c", "d"]))
    assert rule.threshold.value == pytest.approx(0.25)
    assert rule.predict(np.array([[0.8, 0.2], [0.74, 0.26]])).tolist() == [0, 1]
    many = DecisionRule(None, Temperature(1.0, "by hand"))
    assert many.predict(np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])).tolist() == [1, 0]


def test_the_roc_of_several_classes_is_of_all_decisions_together() -> None:
    """Three slides, three classes, nine decisions: the slide of class 2 has its own class in second place."""
    probability = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.0, 0.4]])
    curve = roc_of(SplitPredictions([], np.array([0, 1, 2]), probability))
    assert max(t for f, t in zip(*curve[:2], strict=True) if f == 0.0) == pytest.approx(2 / 3)
    assert min(f for f, t in zip(*curve[:2], strict=True) if t == 1.0) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("attention", "localisation", "flipping", "warned"),
    [
        ([0.97, 0.01, 0.01, 0.01], Estimate(0.9, 0.8, 1.0), Estimate(0.2, 0.1, 0.3), []),
        ([0.25] * 4, Estimate(0.9, 0.8, 1.0), Estimate(0.2, 0.1, 0.3), ["Attention is flat"]),
        ([0.97, 0.01, 0.01, 0.01], Estimate(0.6, 0.4, 0.8), Estimate(0.2, 0.1, 0.3), ["Attention does not find"]),
        ([0.97, 0.01, 0.01, 0.01], Estimate(0.9, 0.8, 1.0), Estimate(0.1, -0.1, 0.3), ["Attention is not faithful"]),
        ([0.97, 0.01, 0.01, 0.01], Estimate(math.nan, reason="none"), Estimate(math.nan, reason="none"), []),
    ],
)
def test_attention_is_warned_of_for_each_reason(
    attention: list[float], localisation: Estimate, flipping: Estimate, warned: list[str]
) -> None:
    predictions = [BagPrediction(np.array([[0.4, 0.6]]), np.array(attention))]
    warnings = attention_warnings(predictions, localisation, flipping)
    assert len(warnings) == len(warned)
    assert all(warning.startswith(start) for warning, start in zip(warnings, warned, strict=True))
