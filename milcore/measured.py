"""The test split in numbers, by rules that were chosen on validation.

A bag's own figures are "slide level" (patient level where the run's bags are patients). Where patients have several
test slides of two classes, figures of patients stand beside them: a patient's probability and label are the highest of
their slides, as a bag's are of its instances.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from milcore.attention import Localisation, localise
from milcore.flipping import Flipping, evenness
from milcore.metrics.calibration import Temperature, calibrate, fit_temperature
from milcore.metrics.classification import (
    Comparison,
    Estimate,
    Threshold,
    choose_threshold,
    class_estimates,
    estimates,
    mean_estimate,
)
from milcore.metrics.curves import RocCurve, roc_curve
from milcore.metrics.delong import delong
from milcore.mil.bags.bags import BagEntry
from milcore.mil.inference import Explained
from milcore.opened_run import OpenedRun, Part

InstanceLabels = dict[str, Int[np.ndarray, " instance"]]

FLAT = Estimate(math.nan, reason="every patch weighs the same")
FLAT_FROM = 0.95
NOTHING_FLIPPED = Estimate(math.nan, reason="no test slide is called positive")


class Rule(NamedTuple):
    """How probabilities become calls and calibrated probabilities; ``threshold`` is None for more than two classes."""

    threshold: Threshold | None
    temperature: Temperature

    def call(self, probability: Float[np.ndarray, "bag class"]) -> Int[np.ndarray, " bag"]:
        """The class called for each bag: by threshold, or the likeliest."""
        if self.threshold is None:
            likeliest: np.ndarray = probability.argmax(axis=1)
            return likeliest
        return (probability[:, 1] >= self.threshold.value).astype(np.int64)


class Checked(NamedTuple):
    """How the attention of the test split stood its checks; ``flipped`` by bag."""

    localisation: Localisation
    flipped: dict[str, Flipping]
    warnings: tuple[str, ...]


class Measured(NamedTuple):
    """Figures of the test split: of bags, of single classes (more than two), of patients, and with temperature."""

    overall: dict[str, Estimate]
    of_class: tuple[dict[str, Estimate], ...]
    of_patients: dict[str, Estimate]
    calibrated: dict[str, Estimate]
    auroc_delong: Estimate


class Evaluated(NamedTuple):
    """Everything that was found of a run; ``rows`` are the model's own and those it is compared with."""

    run: OpenedRun
    rule: Rule
    measured: Measured
    checked: Checked
    rows: Sequence[Comparison]


def choose_rule(val: Part) -> Rule:
    """Threshold and temperature from the validation split alone."""
    temperature = fit_temperature(val.labels, val.probability)
    if val.probability.shape[1] > 2:
        return Rule(None, temperature)
    return Rule(choose_threshold(val.labels, val.probability[:, 1]), temperature)


def measure(test: Part, rule: Rule, seed: int) -> Measured:
    """Every figure of the test split.

    Args:
        test: read here, and nothing of it goes into the rule.
        rule: of the validation split.
        seed: of the resampling.
    """
    warm = calibrate(test.probability, rule.temperature.value)
    if rule.threshold is None:
        found = class_estimates(test.labels, test.probability, test.patients, seed)
        after = class_estimates(test.labels, warm, test.patients, seed).overall
        unknown = Estimate(math.nan, reason="defined for two classes")
        return Measured(found.overall, found.of_class, {}, _calibration(after), unknown)
    positive = test.probability[:, 1]
    overall = estimates(test.labels, positive, test.patients, rule.threshold.value, seed)
    after = estimates(test.labels, warm[:, 1], test.patients, 0.5, seed)
    analytic = delong(test.labels, positive, test.patients)
    return Measured(overall, (), _of_patients(test, rule.threshold, seed), _calibration(after), analytic)


def _calibration(found: dict[str, Estimate]) -> dict[str, Estimate]:
    return {name: found[name] for name in ("brier", "ece")}


def _of_patients(test: Part, threshold: Threshold, seed: int) -> dict[str, Estimate]:
    """Empty where every patient has one bag."""
    patients = sorted(set(test.patients))
    if len(patients) == len(test.entries):
        return {}
    place = np.searchsorted(patients, test.patients)
    labels, probability = np.zeros(len(patients), np.int64), np.zeros(len(patients))
    np.maximum.at(labels, place, test.labels)
    np.maximum.at(probability, place, test.probability[:, 1])
    return estimates(labels, probability, patients, threshold.value, seed)


def roc_of(part: Part) -> RocCurve:
    """Of the positive class of two; with more, of all one-against-rest decisions together (micro-average)."""
    classes = part.probability.shape[1]
    if classes == 2:
        return roc_curve(part.labels, part.probability[:, 1])
    return roc_curve(np.eye(classes, dtype=np.int64)[part.labels].ravel(), part.probability.ravel())


def localise_test(
    scores: Mapping[str, Float[np.ndarray, " instance"]],
    entries: Sequence[BagEntry],
    labels: InstanceLabels,
    classes: int,
) -> Localisation:
    """Within-bag AUROCs of the test slides that are positive or, with more than two classes, have instance labels."""
    tested = [entry for entry in entries if entry.split == "test" and (classes > 2 or entry.label == 1)]
    slides = [slide_id for entry in tested for slide_id in entry.slides if classes == 2 or slide_id in labels]
    return localise({slide_id: (scores[slide_id], labels.get(slide_id)) for slide_id in slides})


def localisation_estimate(found: Mapping[str, float], entries: Sequence[BagEntry], seed: int) -> Estimate:
    """The mean over slides with its patient-level interval."""
    if not found:
        return Estimate(math.nan, reason="no positive test slide has patches of both classes by annotation")
    patient = {slide_id: entry.patient_id for entry in entries for slide_id in entry.slides}
    return mean_estimate(np.array(list(found.values())), [patient[name] for name in found], seed)


def flipping_estimate(found: Mapping[str, Flipping], entries: Sequence[BagEntry], seed: int) -> Estimate:
    """The mean area between random and most-attended-first removal, with its patient-level interval."""
    if not found:
        return NOTHING_FLIPPED
    patient = {entry.bag_id: entry.patient_id for entry in entries}
    areas = np.array([its.area for its in found.values()])
    return mean_estimate(areas, [patient[bag_id] for bag_id in found], seed)


def attention_warnings(said: Sequence[Explained], localisation: Estimate, flipping: Estimate) -> list[str]:
    """Why the attention of this run should not be read as an explanation; empty where nothing speaks against it."""
    even = [value for its in said if not math.isnan(value := evenness(its.attention))]
    warnings = []
    if even and float(np.median(even)) >= FLAT_FROM:
        warnings.append(
            f"Attention is flat: its median entropy is {np.median(even):.3f} of the largest possible. Every patch "
            "weighs nearly the same, so the map shows noise."
        )
    if flipping.value <= 0 or flipping.low <= 0:
        warnings.append(
            "Attention is not faithful: taking out the most attended patches first lowers the probability no more "
            f"surely than taking out random ones (area between the curves {flipping.value:.3f})."
        )
    if localisation.value <= 0.5 or localisation.low <= 0.5:
        warnings.append(
            f"Attention does not find what was annotated: localisation AUROC {localisation.value:.3f}, its interval "
            "holds 0.5 (chance)."
        )
    return warnings


def own_figures(run: OpenedRun) -> dict[str, float]:
    """The median evenness of attention over test bags, NaN where there is none."""
    even = [evenness(run.said[index].attention) for index in run.bags.split("test")]
    return {"attention_entropy": float(np.nanmedian(even)) if even else math.nan}
