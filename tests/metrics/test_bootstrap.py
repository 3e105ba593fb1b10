"""Metrics of many resamples at once against scikit-learn on repeated slides."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milcore.metrics import resamples
from milcore.metrics.bootstrap import weighted_auroc, weighted_values
from milcore.metrics.classification import point_values
from milcore.metrics.curves import curve_bands
from milcore.metrics.resamples import patient_weights


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=30), st.integers(0, 5))
def test_weighted_values_equal_scikit_learn_on_repeated_slides(rows, seed):
    """A row of weights means the same as a data set in which each slide is repeated that often."""
    labels, probability = np.array([r[0] for r in rows]), np.array([r[1] / 5 for r in rows])
    weights = np.random.default_rng(seed).integers(0, 3, size=(4, len(rows))).astype(float)
    resampled = weighted_values(weights, labels, probability, probability >= 0.5)
    for row in range(len(weights)):
        repeat = weights[row].astype(int)
        if not repeat.sum():
            continue
        repeated = np.repeat(labels, repeat), np.repeat(probability, repeat)
        if len(np.unique(repeated[0])) == 2:
            for name, value in point_values(*repeated, repeated[1] >= 0.5).items():
                assert resampled[name][row] == pytest.approx(value), name
        else:
            assert math.isnan(resampled["auroc"][row])
            assert math.isnan(resampled["auprc"][row])


def test_weights_draw_whole_patients_as_many_as_there_are():
    patients = ["a", "b", "a", "c", "b", "b"]
    weights = patient_weights(patients, 500, seed=3)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, 0] + weights[:, 1] + weights[:, 3], 3)
    np.testing.assert_array_equal(weights, patient_weights(patients, 500, seed=3))


def test_a_row_that_lacks_a_class_has_no_auroc():
    weights = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    areas = weighted_auroc(weights, np.array([0, 0, 1]), np.array([0.1, 0.9, 0.5]))
    assert math.isnan(areas[0])
    assert areas[1] == 1.0


def test_blocks_of_resamples_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    labels, probability = random.integers(0, 2, 60), random.random(60).round(2)
    patients = [f"p{k}" for k in random.integers(0, 25, 60)]

    def results() -> list[object]:
        weights = resamples.patient_weights(patients, 500, seed=1)
        return [weights, *weighted_values(weights, labels, probability, probability > 0.5).values()]

    whole, bands = results(), curve_bands(labels, probability, patients, 4)
    monkeypatch.setattr(resamples, "MOST_VALUES", 60 * 7)
    assert len(list(resamples.row_blocks(np.ones((500, 60))))) == 72
    for before, after in zip(whole, results(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert curve_bands(labels, probability, patients, 4) == bands
