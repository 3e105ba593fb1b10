"""Baselines on the run's own split: mean pooling, colour, and shuffled labels.

They are fitted on training patients (those that are trained select their epoch on validation like the run itself) and
evaluated on the test split. None of them is published as a model.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from milcore.config import TrainConfig
from milcore.evaluation.attention.checks import FLAT, InstanceLabels, localisation_estimate, localise_test
from milcore.metrics.auroc import auroc
from milcore.metrics.classification import Comparison, Estimate, mean_estimate
from milcore.metrics.wilson import auroc_interval
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.inference import attention_by_slide, predict_bags
from milcore.runtime.threads import map_in_threads
from milcore.store.catalogue import Catalogue
from milcore.store.sampling import SAMPLE, read_patches, sample_both_classes, sample_runs
from milcore.store.slide_group import SlideGroup
from milcore.training.context import LocalContext
from milcore.training.loop import train_model

# each holds the pixels of a sample of patches
THREADS = 16
NO_PATCH_SCORE = Estimate(math.nan, reason="gives no score per patch")
NO_TEST_SLIDE = Estimate(math.nan, reason="no test slide")
NO_PIXELS = Estimate(math.nan, reason="the store was imported without patches, so there is no colour to read")
NO_SLIDE_SCORE = Estimate(math.nan, reason="gives no score per slide")

MEAN_NOTE = "the same instances, splits and settings, every patch weighed alike"
_SLIDE_COLOUR_NOTE = f"logistic regression on a slide's mean and standard deviation of RGB, {SAMPLE} patches each"
_PATCH_COLOUR_NOTE = (
    f"logistic regression on a patch's mean RGB, told which patches are lesions; {SAMPLE} patches a slide"
)
_SHUFFLED_NOTE = "this model trained on labels dealt out at random: what luck looks like here"


def compare(
    config: TrainConfig, bags: Bags, catalogue: Catalogue, instance_labels: InstanceLabels, device: torch.device
) -> Iterator[Comparison]:
    """Train and evaluate the baselines one by one.

    Args:
        config: of the run; its seed also draws the shuffled labels and the patches whose colour is read.
        bags: of the run, all splits.
        catalogue: of the store whose patches give the colours; where an import has none, the rows of colour say so.
        instance_labels: of annotated slides.
        device: of the baselines that are trained.
    """
    if (config.pooling, config.level) != ("mean", "embedding"):
        mean = _train(config.model_copy(update={"pooling": "mean", "level": "embedding"}), bags, device)
        yield Comparison("embedding-mean pooling", MEAN_NOTE, mean.auroc, FLAT)
    if all(catalogue.slide(slide_id).has_patches for entry in bags.entries for slide_id in entry.slides):
        yield _slide_colour(bags.entries, catalogue, config.seed)
        yield _patch_colour(bags.entries, catalogue, instance_labels, config.seed)
    else:
        yield Comparison("slide colour", _SLIDE_COLOUR_NOTE, NO_PIXELS, NO_PATCH_SCORE)
        yield Comparison("patch colour", _PATCH_COLOUR_NOTE, NO_SLIDE_SCORE, NO_PIXELS)
    shuffled = _train(config, shuffle_outcomes(bags, config.seed), device)
    localisation = (
        FLAT
        if config.pooling == "mean"
        else estimate_localisation(shuffled.attention, bags, instance_labels, config.seed)
    )
    yield Comparison("shuffled training labels", _SHUFFLED_NOTE, shuffled.auroc, localisation)


def estimate_localisation(
    scores: dict[str, Float[np.ndarray, " instance"]], bags: Bags, labels: InstanceLabels, seed: int
) -> Estimate:
    """Mean within-slide AUROC of scores over positive test slides, with its patient-level interval."""
    localisation = localise_test(scores, bags.entries, labels, bags.classes)
    return localisation_estimate(localisation.bags, bags.entries, seed)


def shuffle_outcomes(bags: Bags, seed: int) -> Bags:
    """The same bags with labels, follow-up and values permuted inside training and inside validation.

    Those of test stay as they are.
    """
    random = np.random.default_rng(seed)
    entries = list(bags.entries)
    for split in ("train", "val"):
        indices = bags.split(split)
        for index, other in zip(indices, random.permutation(indices).tolist(), strict=True):
            source = bags.entries[other]
            entries[index] = entries[index]._replace(label=source.label, follow_up=source.follow_up, value=source.value)
    index_of = {entry.bag_id: k for k, entry in enumerate(entries)}
    return Bags(
        entries,
        lambda entry: bags[index_of[entry.bag_id]].instances,
        bags.cache_bytes,
        open_places=lambda entry: bags[index_of[entry.bag_id]].places,
    )


class _TestResult(NamedTuple):
    """Test AUROC and attention of a trained baseline."""

    auroc: Estimate
    attention: dict[str, Float[np.ndarray, " instance"]]


def _train(config: TrainConfig, bags: Bags, device: torch.device) -> _TestResult:
    """Train a model, writing nothing, and evaluate it on the test bags."""
    model = train_model(config, bags, LocalContext(None, device)).model
    predictions = predict_bags([model], bags, bags.split("test"), device)
    entries = [bags.entries[index] for index in predictions]
    if not entries:
        return _TestResult(NO_TEST_SLIDE, {})
    probability = np.array([prediction.probability for prediction in predictions.values()])
    estimate = auroc_interval(*_metric_inputs(entries, probability))
    return _TestResult(estimate, attention_by_slide(bags, predictions))


def _slide_colour(entries: Sequence[BagEntry], catalogue: Catalogue, seed: int) -> Comparison:
    """Logistic regression of the slide's label on mean and deviation of its RGB."""
    train = [entry for entry in entries if entry.split == "train"]
    test = [entry for entry in entries if entry.split == "test"]
    if not test:
        return Comparison("slide colour", _SLIDE_COLOUR_NOTE, NO_TEST_SLIDE, NO_PATCH_SCORE)
    colours = bag_colours([*train, *test], catalogue, seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit([colours[entry.bag_id] for entry in train], [entry.label for entry in train])
    probability = model.predict_proba([colours[entry.bag_id] for entry in test])
    estimate = auroc_interval(*_metric_inputs(test, probability))
    return Comparison("slide colour", _SLIDE_COLOUR_NOTE, estimate, NO_PATCH_SCORE)


def bag_colours(entries: Sequence[BagEntry], catalogue: Catalogue, seed: int) -> dict[str, Float[np.ndarray, "6"]]:
    """Mean and standard deviation of RGB of each bag, by its id."""
    read = partial(_bag_colour, catalogue=catalogue, seed=seed)
    return dict(zip((entry.bag_id for entry in entries), map_in_threads(read, entries, THREADS), strict=True))


def _bag_colour(entry: BagEntry, catalogue: Catalogue, seed: int) -> Float[np.ndarray, "6"]:
    """Mean of ``slide_colour`` over the bag's slides."""
    mean: np.ndarray = np.mean([slide_colour(catalogue.slide(slide_id), seed) for slide_id in entry.slides], axis=0)
    return mean


def slide_colour(slide: SlideGroup, seed: int) -> Float[np.ndarray, "6"]:
    """Mean and standard deviation of RGB over a sample of the slide's patches."""
    patches = read_patches(slide, sample_runs(len(slide), slide.slide_id, seed))
    mean = np.mean([patch.mean(axis=(0, 1)) for patch in patches], axis=0)
    square = np.mean([np.square(patch, dtype=np.float64).mean(axis=(0, 1)) for patch in patches], axis=0)
    return np.concatenate([mean, np.sqrt(square - mean**2)])


def _patch_colour(
    entries: Sequence[BagEntry], catalogue: Catalogue, instance_labels: InstanceLabels, seed: int
) -> Comparison:
    """Logistic regression of a patch's annotation on its mean RGB."""

    def draw(slide: tuple[str, str]) -> _PatchColours:
        patient_id, slide_id = slide
        return _PatchColours.draw(catalogue.slide(slide_id), patient_id, instance_labels[slide_id], seed)

    annotated = {
        split: [
            (entry.patient_id, slide_id)
            for entry in entries
            for slide_id in entry.slides
            if entry.split == split and _has_both_classes(instance_labels.get(slide_id))
        ]
        for split in ("train", "test")
    }
    samples = {split: list(map_in_threads(draw, slides, THREADS)) for split, slides in annotated.items()}
    if not samples["train"] or not samples["test"]:
        reason = "no annotated patches of both classes in training or in test"
        return Comparison("patch colour", _PATCH_COLOUR_NOTE, NO_SLIDE_SCORE, Estimate(math.nan, reason=reason))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(
        np.concatenate([sample.rgb for sample in samples["train"]]),
        np.concatenate([sample.labels for sample in samples["train"]]),
    )
    areas = np.array([auroc(sample.labels, model.decision_function(sample.rgb)) for sample in samples["test"]])
    estimate = mean_estimate(areas, [sample.patient_id for sample in samples["test"]], seed)
    return Comparison("patch colour", _PATCH_COLOUR_NOTE, NO_SLIDE_SCORE, estimate)


class _PatchColours(NamedTuple):
    """Mean RGB of a slide's sampled patches beside their labels."""

    patient_id: str
    rgb: Float[np.ndarray, "patch 3"]
    labels: Int[np.ndarray, " patch"]

    @classmethod
    def draw(cls, slide: SlideGroup, patient_id: str, labels: Int[np.ndarray, " instance"], seed: int) -> Self:
        """Read the sample of one slide."""
        indices = sample_both_classes(labels, slide.slide_id, seed)
        patches = read_patches(slide, indices)
        return cls(patient_id, patches.mean(axis=(1, 2)), labels[indices])


def _has_both_classes(labels: Int[np.ndarray, " instance"] | None) -> bool:
    return labels is not None and {0, 1} <= set(np.unique(labels).tolist())


def _metric_inputs(
    entries: Sequence[BagEntry], scores: Float[np.ndarray, "slide class"]
) -> tuple[Int[np.ndarray, " slide"], Float[np.ndarray, "slide class"], list[str]]:
    """Labels, scores and patients, the arguments of a metric."""
    return np.array([entry.label for entry in entries]), scores, [entry.patient_id for entry in entries]
