"""Score intervals: confidence intervals of metrics that have width at 0 and 1 too.

Where every slide is called right, every resample of the patients is too, and its interval shrinks to a point. The score
interval of a proportion holds all t from which it differs by at most 1.96 standard errors, those at t.

Slides of one patient are not independent. Here they count as one observation: n is the effective sample size
``(sum m)^2 / sum m^2`` of patients with m slides each, that of the design effect at an intraclass correlation of 1
(Kish 1965, Survey Sampling). Where every patient has one slide, n is their number and the interval is Wilson's own;
elsewhere it is wider than slides that differ within a patient would need. Slides of different classes are taken for
independent.

Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", Journal of the American
Statistical Association 22:209-212.

Axes: slide, class.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm

from milcore.metrics.classification import MACRO, PER_CLASS, ClassEstimates, Estimate, point_values
from milcore.metrics.newcombe import newcombe


class ScoreIntervals(NamedTuple):
    """Metrics of a split with their score intervals, those that have one.

    Args:
        overall: of bags.
        of_class: of each class of more than two, empty for two.
        of_patients: empty where every patient has one bag.
    """

    overall: dict[str, Estimate]
    of_class: tuple[dict[str, Estimate], ...]
    of_patients: dict[str, Estimate]


def wilson(value: float, patients: Iterable[str]) -> Estimate:
    """A proportion p of slides with Wilson's score interval.

    ``(p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`` with z = 1.96.

    Args:
        value: p, 0 to 1.
        patients: the patient of each slide that the proportion is one of.
    """
    n, z = effective_size(patients), float(norm.ppf(0.975))
    centre = value + z**2 / (2 * n)
    half_width = z * math.sqrt(value * (1 - value) / n + (z / (2 * n)) ** 2)
    low, high = ((centre + sign * half_width) / (1 + z**2 / n) for sign in (-1, 1))
    # exact at 0 and 1, where rounding would leave a trace
    return Estimate(value, low if value > 0 else 0.0, high if value < 1 else 1.0)


def effective_size(patients: Iterable[str]) -> float:
    """Effective sample size of slides that are grouped by patients.

    ``(sum m)^2 / sum m^2`` of patients with m slides each; at most the number of patients.
    """
    slides = list(Counter(patients).values())
    return sum(slides) ** 2 / sum(count**2 for count in slides)


def score_intervals(
    labels: Int[np.ndarray, " slide"],
    probability: Float[np.ndarray, " slide"],
    predicted: Bool[np.ndarray, " slide"],
    patients: list[str],
) -> dict[str, Estimate]:
    """Metrics of two classes with their score intervals, those that the split defines.

    Accuracy, sensitivity and specificity are proportions. F1 is ``2 J / (1 + J)``, where J is the proportion of true
    positives among the slides that are positive or called so. The balanced accuracy is a mean of two. The average
    precision A has the variance ``A (1 - A) / m`` over m positives, here at the end of the interval. AUROC has
    Newcombe's interval.

    Source of the variance: Boyd, Eng, Page 2013, "Area under the precision-recall curve: point estimates and confidence
    intervals", ECML PKDD, the binomial interval, which takes it at A.

    Args:
        labels: 0 or 1.
        probability: of the positive class, 0 to 1.
        predicted: True where a slide is called positive.
        patients: the patient of each slide.
    """
    values, positive = point_values(labels, probability, predicted), labels == 1
    slides = {
        "auprc": positive,
        "accuracy": np.ones_like(positive),
        "sensitivity": positive,
        "specificity": ~positive,
    }
    intervals = {
        name: wilson(values[name], itertools.compress(patients, of))
        for name, of in slides.items()
        if not math.isnan(values[name])
    }
    if math.isnan(values["auroc"]):
        return intervals
    return intervals | {
        "auroc": newcombe(labels, probability, patients),
        "balanced_accuracy": mean_of_proportions([intervals["sensitivity"], intervals["specificity"]]),
        "f1": _f1(values["f1"], itertools.compress(patients, positive | predicted)),
    }


def class_score_intervals(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, "slide class"], patients: list[str]
) -> ClassEstimates:
    """Metrics of several classes with their score intervals, those that the split defines.

    The mean sensitivity is a mean of independent proportions. The means of AUROC, AUPRC and F1 over the classes are of
    values that depend on each other: their ends are the means of the classes' ends, since the standard error of a mean
    is at most the mean of the standard errors.

    Args:
        labels: class of each slide.
        probability: of every class; the likeliest is predicted.
        patients: the patient of each slide.
    """
    predicted = probability.argmax(axis=1)
    of_class = [
        score_intervals((labels == c).astype(np.int64), probability[:, c], predicted == c, patients)
        for c in range(probability.shape[1])
    ]
    means = {name: [each[part] for each in of_class if part in each] for name, part in MACRO.items()}
    overall = {
        name: mean_of_proportions(intervals) if name == "balanced_accuracy" else _mean_ends(intervals)
        for name, intervals in means.items()
        if intervals
    }
    if len(labels):
        overall["accuracy"] = wilson(float((predicted == labels).mean()), patients)
    shown = [{name: each[name] for name in PER_CLASS if name in each} for each in of_class]
    return ClassEstimates(overall, tuple(shown))


def auroc_interval(
    labels: Int[np.ndarray, " slide"], scores: Float[np.ndarray, "slide class"], patients: list[str]
) -> Estimate:
    """AUROC with Newcombe's interval.

    Of more than two classes it is their mean, with the means of the ends.

    Args:
        labels: class of each slide.
        scores: of every class, on any scale.
        patients: the patient of each slide.
    """
    if scores.shape[1] == 2:
        return newcombe(labels, scores[:, 1], patients)
    of_class = [newcombe((labels == c).astype(np.int64), scores[:, c], patients) for c in range(scores.shape[1])]
    defined = [each for each in of_class if each.reason is None]
    return _mean_ends(defined) if defined else of_class[0]


def mean_of_proportions(parts: Sequence[Estimate]) -> Estimate:
    """Mean of independent proportions, with an interval out of theirs.

    ``low = mean - sqrt(sum (p_i - low_i)^2) / k`` over k proportions, and the upper end likewise.

    Source: Zou, Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine
    27:1693-1702, equations for a sum.
    """
    mean = float(np.mean([part.value for part in parts]))
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Estimate(mean, mean - below, mean + above)


def _mean_ends(parts: Sequence[Estimate]) -> Estimate:
    value, low, high = np.mean([(part.value, part.low, part.high) for part in parts], axis=0)
    return Estimate(float(value), float(low), float(high))


def _f1(value: float, patients: Iterable[str]) -> Estimate:
    jaccard = wilson(value / (2 - value), patients)
    return Estimate(value, 2 * jaccard.low / (1 + jaccard.low), 2 * jaccard.high / (1 + jaccard.high))
