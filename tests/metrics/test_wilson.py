"""Score intervals: their equations, their width at 0 and 1, and how often they cover the truth."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, norm
from sklearn.metrics import average_precision_score

from milcore.metrics.classification import Estimate, class_estimates, estimates
from milcore.metrics.newcombe import newcombe
from milcore.metrics.wilson import (
    _f1,
    auroc_interval,
    class_score_intervals,
    effective_size,
    mean_of_proportions,
    score_intervals,
    wilson,
)

Z = 1.959963984540054
COHORTS = 1000
NAMES = {"auroc", "auprc", "accuracy", "balanced_accuracy", "f1", "sensitivity", "specificity"}


def alone(count: int) -> list[str]:
    return [str(k) for k in range(count)]


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_a_proportion_has_the_interval_of_the_literature(right: int, of: int, low: float, high: float) -> None:
    interval = wilson(right / of, alone(of))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(1 - right / of, alone(of))
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - interval.high, 1 - interval.low))


def test_at_its_ends_the_distance_is_1_96_standard_errors_of_the_end() -> None:
    interval = wilson(0.7, alone(10))
    for t in (interval.low, interval.high):
        assert abs(0.7 - t) == pytest.approx(Z * math.sqrt(t * (1 - t) / 10))


def test_slides_of_a_patient_count_as_one() -> None:
    assert effective_size(alone(9)) == 9
    assert effective_size(["a"] * 9) == 1
    assert effective_size(["a", "a", "b", "b", "c", "c"]) == 3
    assert effective_size(["a", "a", "a", "b"]) == 16 / 10
    once, thrice = wilson(0.8, alone(10)), wilson(0.8, alone(10) * 3)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize("patients", [4, 10, 100])
def test_metrics_of_a_perfect_model_have_width(patients: int) -> None:
    """And so have those of one that is always wrong; resampled patients give points."""
    labels = np.arange(patients) % 2
    perfect = score_intervals(labels, labels.astype(float), labels == 1, alone(patients))
    assert perfect.keys() == NAMES
    for name, interval in perfect.items():
        assert interval.value == interval.high == 1.0, name
        assert 0.0 < interval.low < 1.0 - 1.0 / patients, name
    resampled = estimates(labels, labels.astype(float), alone(patients), 0.5, seed=0)
    assert all(resampled[name].low == resampled[name].high == 1.0 for name in NAMES)
    wrong = score_intervals(labels, 1.0 - labels, labels == 0, alone(patients))
    for name, interval in wrong.items():
        assert interval.low < interval.high, name
        assert (interval.low == interval.value == 0.0) == (name != "auprc"), name


def test_values_are_those_of_the_metrics() -> None:
    random = np.random.default_rng(0)
    labels = (np.arange(40) % 3 == 0).astype(np.int64)
    probability = np.clip(0.3 * labels + random.uniform(0, 0.7, 40), 0, 1)
    patients = [str(k // 2) for k in range(40)]
    intervals = score_intervals(labels, probability, probability >= 0.5, patients)
    resampled = estimates(labels, probability, patients, 0.5, seed=0)
    assert {name: interval.value for name, interval in intervals.items()} == pytest.approx(
        {name: resampled[name].value for name in NAMES}
    )
    assert all(interval.low < interval.value < interval.high for interval in intervals.values())


def test_a_sum_of_proportions_has_the_interval_worked_by_hand() -> None:
    """Distances 0.3 and 0.4 below, 0.05 and 0.12 above: 0.5 / 2 and 0.13 / 2 from the mean of 0.9 and 0.7."""
    interval = mean_of_proportions([Estimate(0.9, 0.6, 0.95), Estimate(0.7, 0.3, 0.82)])
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.55, 0.865))


def test_f1_is_a_function_of_a_proportion() -> None:
    """3 hits, 1 missed, 2 called wrongly: J = 3 / 6 over 6 slides, F1 = 2 * 0.5 / 1.5."""
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0])
    called = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0]) == 1
    f1 = score_intervals(labels, called.astype(float), called, alone(9))["f1"]
    jaccard = wilson(0.5, alone(6))
    assert f1.value == pytest.approx(2 / 3)
    assert (f1.low, f1.high) == pytest.approx([2 * end / (1 + end) for end in (jaccard.low, jaccard.high)])


def test_one_class_has_an_accuracy_alone() -> None:
    assert score_intervals(np.ones(3, np.int64), np.ones(3), np.ones(3, bool), alone(3)).keys() == {"accuracy"}
    assert score_intervals(np.ones(0, np.int64), np.ones(0), np.ones(0, bool), []) == {}


def test_means_over_classes_have_width_and_the_values_of_the_metrics() -> None:
    random = np.random.default_rng(4)
    labels = np.arange(30) % 3
    probability = random.dirichlet(np.ones(3), 30) * 0.6 + 0.4 * np.eye(3)[labels]
    intervals = class_score_intervals(labels, probability, alone(30))
    resampled = class_estimates(labels, probability, alone(30), seed=0)
    assert intervals.overall.keys() == {"auroc", "auprc", "accuracy", "balanced_accuracy", "f1"}
    for name, interval in intervals.overall.items():
        assert interval.value == pytest.approx(resampled.overall[name].value), name
    assert auroc_interval(labels, probability, alone(30)) == intervals.overall["auroc"]
    of_class = [newcombe((labels == c).astype(np.int64), probability[:, c], alone(30)) for c in range(3)]
    assert intervals.overall["auroc"].low == pytest.approx(np.mean([each.low for each in of_class]))
    perfect = class_score_intervals(labels, np.eye(3)[labels], alone(30))
    for every in (perfect.overall, *perfect.of_class):
        assert all(interval.low < interval.value == 1.0 == interval.high for interval in every.values())


def test_a_class_that_is_not_there_is_left_out_of_the_means() -> None:
    labels = np.arange(30) % 2
    probability = np.eye(3)[labels] * 0.8 + 0.1
    intervals = class_score_intervals(labels, probability, alone(30))
    assert intervals.of_class[2].keys() == set()
    assert intervals.overall["auroc"].value == 1.0


@pytest.mark.parametrize(("truth", "least"), [(0.5, 0.93), (0.8, 0.93), (0.95, 0.91)])
@pytest.mark.parametrize("slides", [10, 30, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.usefixtures("without_type_checks")
def test_a_proportion_covers_the_truth_about_as_often_as_it_says(truth: float, least: float, slides: int) -> None:
    """Over all counts of right slides, by their probabilities: exact, without simulation."""
    intervals = [wilson(count / slides, alone(slides)) for count in range(slides + 1)]
    covered = sum(
        float(binom.pmf(count, slides, truth))
        for count, interval in enumerate(intervals)
        if interval.low <= truth <= interval.high
    )
    assert least <= covered <= 0.985, covered


def precision_of(distance: float) -> float:
    """Area under the precision-recall curve of scores N(0, 1) and N(d, 1) with as many positives as negatives."""
    t = np.linspace(9 + distance, -9, 20_001)
    recall, false_positives = norm.sf(t - distance), norm.sf(t)
    return float(np.trapezoid(recall / (recall + false_positives + 1e-300), recall))


@pytest.mark.parametrize("truth", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("slides", [10, 30, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.usefixtures("without_type_checks")
def test_average_precision_covers_the_truth_at_least_as_often_as_it_says(truth: float, slides: int) -> None:
    random = np.random.default_rng(6)
    labels = np.arange(slides) % 2
    distance = 0.0 if truth == 0.5 else brentq(lambda d: precision_of(d) - truth, 0, 6)
    covered = 0
    for _ in range(COHORTS):
        area = float(average_precision_score(labels, random.normal(labels * distance, 1.0)))
        interval = wilson(area, alone(slides // 2))
        covered += interval.low <= truth <= interval.high
    assert covered / COHORTS >= 0.94, covered / COHORTS


@pytest.mark.parametrize("truth", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("slides", [10, 30, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.usefixtures("without_type_checks")
def test_balanced_accuracy_and_f1_cover_the_truth_about_as_often_as_they_say(truth: float, slides: int) -> None:
    """Sensitivity t, specificity t, as many positives as negatives: F1 is 2 t / (2 t + (1 - t) + (1 - t))."""
    random = np.random.default_rng(7)
    labels = np.arange(slides) % 2
    covered = np.zeros(2)
    for _ in range(COHORTS):
        called = (random.random(slides) < truth) == (labels == 1)
        hits, alarms = int((called & (labels == 1)).sum()), int((called & (labels == 0)).sum())
        of_each = slides // 2
        balanced = mean_of_proportions(
            [wilson(hits / of_each, alone(of_each)), wilson(1 - alarms / of_each, alone(of_each))]
        )
        f1 = _f1(2 * hits / (hits + of_each + alarms), alone(of_each + alarms))
        covered += [interval.low <= truth <= interval.high for interval in (balanced, f1)]
    assert np.all(covered / COHORTS >= 0.9), covered / COHORTS


@pytest.mark.parametrize("likeness", [0.0, 0.5, 1.0])
def test_patients_of_two_slides_cover_the_truth_however_alike_these_are(likeness: float) -> None:
    """30 patients; the second slide repeats the first with this probability, else it is called anew."""
    random = np.random.default_rng(8)
    covered = 0
    for _ in range(COHORTS):
        first, anew = random.random((2, 30)) < 0.8
        second = np.where(random.random(30) < likeness, first, anew)
        interval = wilson(float(np.mean([first, second])), [*alone(30), *alone(30)])
        covered += interval.low <= 0.8 <= interval.high
    assert covered / COHORTS >= 0.94, covered / COHORTS
