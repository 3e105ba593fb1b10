"""Checks of attention: entropy, localisation, patch flipping, and their warnings."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from milcore.evaluation.attention.localisation import Localisation, localise
from milcore.evaluation.attention.patch_flipping import Flipping, flip, normalised_entropy
from milcore.evaluation.decision import DecisionRule, predicted_classes
from milcore.evaluation.run_predictions import RunPredictions
from milcore.metrics.classification import Estimate, mean_estimate
from milcore.mil.bags.bags import BagEntry
from milcore.mil.inference import BagPrediction, attention_by_slide
from milcore.runtime.progress import track

# slides differ in their number of instances
InstanceLabels = dict[str, Int[np.ndarray, " _"]]
FLAT = Estimate(math.nan, reason="every patch weighs the same")
FLAT_FROM = 0.95
ESTIMATES = ("localisation_auroc", "localisation_ap", "flipping_area")
NO_FLIPPING = Estimate(math.nan, reason="no test slide is called positive")


class AttentionChecks(NamedTuple):
    """Checks of the attention over the test split.

    Args:
        estimates: ``localisation_auroc``, ``localisation_ap`` and ``flipping_area``, in this order.
        localisation: within-slide AUROC and average precision of each slide.
        flipping: curves of each bag that is predicted positive, or of all bags with more than two classes.
        warnings: reasons not to read this attention as an explanation.
    """

    estimates: dict[str, Estimate]
    localisation: Localisation
    flipping: dict[str, Flipping]
    warnings: tuple[str, ...]


def check_attention(run: RunPredictions, rule: DecisionRule, labels: InstanceLabels) -> AttentionChecks:
    """Check the test split's attention against instance labels and against the model's own predictions."""
    entries = run.split("test").entries
    localisation = localise_test(attention_by_slide(run.bags, run.predictions), entries, labels, len(run.spec.classes))
    if run.spec.train.pooling == "mean":
        return AttentionChecks(dict.fromkeys(ESTIMATES, FLAT), localisation, {}, ())
    flipping = dict(_flipping_curves(run, rule))
    seed = run.spec.train.seed
    auroc = localisation_estimate(localisation.bags, entries, seed)
    precision = localisation_estimate(localisation.precision, entries, seed)
    area = flipping_estimate(flipping, entries, seed)
    warnings = attention_warnings([run.predictions[index] for index in run.bags.split("test")], auroc, area)
    estimates = dict(zip(ESTIMATES, (auroc, precision, area), strict=True))
    return AttentionChecks(estimates, localisation, flipping, tuple(warnings))


def _flipping_curves(run: RunPredictions, rule: DecisionRule) -> Iterator[tuple[str, Flipping]]:
    """Curves of each test bag predicted positive, of all with more classes."""
    predicted = predicted_classes(run, rule)
    indices = [index for index, label in predicted.items() if label or len(run.spec.classes) > 2]
    for index in track(indices, "flipping patches", len(indices)):
        attention = run.predictions[index].attention
        curves = flip(run.models, run.bags[index], attention, predicted[index], run.spec.train.seed)
        yield run.bags.entries[index].bag_id, curves


def localise_test(
    scores: Mapping[str, Float[np.ndarray, " instance"]],
    entries: Sequence[BagEntry],
    labels: InstanceLabels,
    classes: int,
) -> Localisation:
    """Localisation of scores in the test slides that may hold positive patches.

    Those slides are positive or, with more than two classes, have instance labels.
    """
    candidates = [entry for entry in entries if entry.split == "test" and (classes > 2 or entry.label == 1)]
    slides = [slide_id for entry in candidates for slide_id in entry.slides if classes == 2 or slide_id in labels]
    return localise({slide_id: (scores[slide_id], labels.get(slide_id)) for slide_id in slides})


def localisation_estimate(by_slide: Mapping[str, float], entries: Sequence[BagEntry], seed: int) -> Estimate:
    """The mean over slides with its patient-level interval."""
    if not by_slide:
        return Estimate(math.nan, reason="no positive test slide has patches of both classes by annotation")
    patient = {slide_id: entry.patient_id for entry in entries for slide_id in entry.slides}
    return mean_estimate(np.array(list(by_slide.values())), [patient[slide_id] for slide_id in by_slide], seed)


def flipping_estimate(by_bag: Mapping[str, Flipping], entries: Sequence[BagEntry], seed: int) -> Estimate:
    """Mean area between random and most-attended-first removal, with its patient-level interval."""
    if not by_bag:
        return NO_FLIPPING
    patient = {entry.bag_id: entry.patient_id for entry in entries}
    areas = np.array([curves.area for curves in by_bag.values()])
    return mean_estimate(areas, [patient[bag_id] for bag_id in by_bag], seed)


def attention_warnings(predictions: Sequence[BagPrediction], localisation: Estimate, flipping: Estimate) -> list[str]:
    """Reasons not to read this attention as an explanation; empty where none applies."""
    entropies = [normalised_entropy(prediction.attention) for prediction in predictions]
    defined = [entropy for entropy in entropies if not math.isnan(entropy)]
    warnings = []
    if defined and float(np.median(defined)) >= FLAT_FROM:
        warnings.append(
            f"Attention is flat: its median entropy is {np.median(defined):.3f} of the largest possible. Every patch "
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
