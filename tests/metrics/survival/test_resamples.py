"""Metrics of many resamples at once: a row of weights means patients repeated that often."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milcore.errors import InputError
from milcore.metrics import resamples
from milcore.metrics.survival import concordance
from milcore.metrics.survival.brier_score import brier_score, weighted_brier_score
from milcore.metrics.survival.concordance import harrell_c, uno_c, weighted_harrell_c, weighted_uno_c
from milcore.metrics.survival.dynamic_auc import dynamic_auc, weighted_dynamic_auc
from milcore.metrics.survival.outcome import Outcome

TRAINING = Outcome.of(np.arange(1.0, 31.0), np.arange(30) % 3 > 0)
PATIENTS = st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.integers(0, 4)), min_size=3, max_size=25)


def or_nan(metric, *arguments) -> float:
    try:
        return metric(*arguments)
    except InputError:
        return math.nan


def auc_at(outcome: Outcome, risk: np.ndarray, training: Outcome, times: np.ndarray) -> float:
    return dynamic_auc(outcome, risk, training, times).at_times[0]


@settings(max_examples=80, deadline=None)
@given(PATIENTS, st.integers(0, 5))
def test_weighted_metrics_equal_those_of_repeated_patients(rows, seed):
    time, event, risk = (np.array(column) for column in zip(*rows, strict=True))
    outcome, risk = Outcome.of(time, event), risk.astype(float)
    weights = np.random.default_rng(seed).integers(0, 3, (4, len(rows))).astype(float)
    times, survival = np.array([4.5]), np.exp(-risk / 4)[:, None]
    harrell = weighted_harrell_c(weights, outcome, risk)
    uno = weighted_uno_c(weights, outcome, risk, TRAINING, 7.0)
    inside = time.min() <= 4.5 < time.max()
    areas = weighted_dynamic_auc(weights, outcome, risk, TRAINING, times)[0] if inside else None
    losses = weighted_brier_score(weights, outcome, survival, TRAINING, times) if inside else None
    for k, row in enumerate(weights.astype(int)):
        again, scores = outcome.of_patients(np.repeat(np.arange(len(row)), row)), np.repeat(risk, row)
        np.testing.assert_allclose(harrell[k], or_nan(harrell_c, again, scores))
        np.testing.assert_allclose(uno[k], or_nan(uno_c, again, scores, TRAINING, 7.0))
        if inside and row.sum() and again.time.min() <= 4.5 < again.time.max():
            area = or_nan(auc_at, again, scores, TRAINING, times)
            np.testing.assert_allclose(areas[k, 0], area)
            loss = brier_score(again, np.repeat(survival, row, axis=0), TRAINING, times)
            np.testing.assert_allclose(losses[k], loss)


def test_blocks_of_pairs_and_resamples_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    outcome = Outcome.of(random.integers(1, 20, 60), random.random(60) < 0.6)
    risk, weights = random.normal(size=60).round(1), random.integers(0, 3, (50, 60)).astype(float)

    def results() -> list[np.ndarray]:
        return [
            weighted_harrell_c(weights, outcome, risk),
            weighted_uno_c(weights, outcome, risk, TRAINING, 15.0),
            *weighted_dynamic_auc(weights, outcome, risk, TRAINING, np.array([5.0, 10.0])),
        ]

    whole = results()
    for module in (resamples, concordance):
        monkeypatch.setattr(module, "MOST_VALUES", 60 * 7)
    for before, after in zip(whole, results(), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-12)
