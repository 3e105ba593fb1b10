"""What simple models reach on the same split: the rows a result must beat to mean something.

Fitted on training patients (the trained rows select their epoch on validation like the run itself), measured on test.
Nothing here is published as a model.
"""

import math
from collections.abc import Iterator, Sequence
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
from milcore.metrics.classification import Comparison, Estimate, auroc_estimate, mean_estimate
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.inference import attention_by_slide, predict_bags
from milcore.store.sampling import SAMPLE, read_patches, sample_both_classes, sample_runs
from milcore.store.slide_group import SlideGroup
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.loop import fit

NO_PATCH_SCORE = Estimate(math.nan, reason="gives no score per patch")
NO_TEST_SLIDE = Estimate(math.nan, reason="no test slide")
NO_PIXELS = Estimate(math.nan, reason="the store was imported without patches, so there is no colour to read")
NO_SLIDE_SCORE = Estimate(math.nan, reason="gives no score per slide")

_MEAN_NOTE = "the same instances, splits and settings, every patch weighed alike"
_SLIDE_COLOUR_NOTE = f"logistic regression on a slide's mean and standard deviation of RGB, {SAMPLE} patches each"
_PATCH_COLOUR_NOTE = (
    f"logistic regression on a patch's mean RGB, told which patches are lesions; {SAMPLE} patches a slide"
)
_SHUFFLED_NOTE = "this model trained on labels dealt out at random: what luck looks like here"


def compare(
    config: TrainConfig, bags: Bags, store: PatchStore, instance_labels: InstanceLabels, device: torch.device
) -> Iterator[Comparison]:
    """The rows beside the model's own, as they come.

    Args:
        config: of the run; its seed also draws the shuffled labels and the patches whose colour is read.
        bags: of the run, all splits.
        store: the patches whose colour is read; where an import has none, the rows of colour say so.
        instance_labels: of annotated slides.
        device: where the trained rows are trained.
    """
    if (config.pooling, config.level) != ("mean", "embedding"):
        mean = _train(config.model_copy(update={"pooling": "mean", "level": "embedding"}), bags, device)
        yield Comparison("embedding-mean pooling", _MEAN_NOTE, mean.auroc, FLAT)
    if all(store.slide(slide_id).has_patches for entry in bags.entries for slide_id in entry.slides):
        yield _slide_colour(bags.entries, store, config.seed)
        yield _patch_colour(bags.entries, store, instance_labels, config.seed)
    else:
        yield Comparison("slide colour", _SLIDE_COLOUR_NOTE, NO_PIXELS, NO_PATCH_SCORE)
        yield Comparison("patch colour", _PATCH_COLOUR_NOTE, NO_SLIDE_SCORE, NO_PIXELS)
    luck = _train(config, shuffle_labels(bags, config.seed), device)
    places = FLAT if config.pooling == "mean" else localised(luck.attention, bags, instance_labels, config.seed)
    yield Comparison("shuffled training labels", _SHUFFLED_NOTE, luck.auroc, places)


def localised(
    scores: dict[str, Float[np.ndarray, " instance"]], bags: Bags, labels: InstanceLabels, seed: int
) -> Estimate:
    """Mean over positive test bags of the within-bag AUROC of scores, with its patient-level interval."""
    found = localise_test(scores, bags.entries, labels, bags.classes)
    return localisation_estimate(found.bags, bags.entries, seed)


def shuffle_labels(bags: Bags, seed: int) -> Bags:
    """The same bags with labels permuted inside training and inside validation; test labels stay as they are."""
    random = np.random.default_rng(seed)
    labels = [entry.label for entry in bags.entries]
    for split in ("train", "val"):
        places = bags.split(split)
        for place, label in zip(places, random.permutation([labels[k] for k in places]), strict=True):
            labels[place] = int(label)
    entries = [entry._replace(label=label) for entry, label in zip(bags.entries, labels, strict=True)]
    place_of = {entry.bag_id: k for k, entry in enumerate(entries)}
    return Bags(entries, lambda entry: bags[place_of[entry.bag_id]].instances, bags.cache_bytes)


class _Trained(NamedTuple):
    """What a freshly trained model says of the test bags."""

    auroc: Estimate
    attention: dict[str, Float[np.ndarray, " instance"]]


def _train(config: TrainConfig, bags: Bags, device: torch.device) -> _Trained:
    """Train without keeping anything."""
    model = fit(config, bags, LocalContext(None, device)).model
    said = predict_bags([model], bags, bags.split("test"), device)
    entries = [bags.entries[index] for index in said]
    if not entries:
        return _Trained(NO_TEST_SLIDE, {})
    probability = np.array([its.probability for its in said.values()])
    return _Trained(auroc_estimate(*_truth(entries, probability), config.seed), attention_by_slide(bags, said))


def _slide_colour(entries: Sequence[BagEntry], store: PatchStore, seed: int) -> Comparison:
    """Logistic regression on mean and standard deviation of a slide's RGB against the slide's label."""
    train = [entry for entry in entries if entry.split == "train"]
    test = [entry for entry in entries if entry.split == "test"]
    if not test:
        return Comparison("slide colour", _SLIDE_COLOUR_NOTE, NO_TEST_SLIDE, NO_PATCH_SCORE)
    colours = {entry.bag_id: _bag_colour(entry, store, seed) for entry in (*train, *test)}
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit([colours[entry.bag_id] for entry in train], [entry.label for entry in train])
    score = model.predict_proba([colours[entry.bag_id] for entry in test])
    return Comparison("slide colour", _SLIDE_COLOUR_NOTE, auroc_estimate(*_truth(test, score), seed), NO_PATCH_SCORE)


def _bag_colour(entry: BagEntry, store: PatchStore, seed: int) -> Float[np.ndarray, "6"]:
    """The mean over the bag's slides."""
    mean: np.ndarray = np.mean([slide_colour(store.slide(slide_id), seed) for slide_id in entry.slides], axis=0)
    return mean


def slide_colour(slide: SlideGroup, seed: int) -> Float[np.ndarray, "6"]:
    """Mean and standard deviation of red, green and blue over a sample of the slide's patches."""
    patches = read_patches(slide, sample_runs(len(slide), slide.slide_id, seed))
    mean = np.mean([patch.mean(axis=(0, 1)) for patch in patches], axis=0)
    square = np.mean([np.square(patch, dtype=np.float64).mean(axis=(0, 1)) for patch in patches], axis=0)
    return np.concatenate([mean, np.sqrt(square - mean**2)])


def _patch_colour(
    entries: Sequence[BagEntry], store: PatchStore, instance_labels: InstanceLabels, seed: int
) -> Comparison:
    """Logistic regression on a patch's mean RGB against annotated patches."""
    drawn = {
        split: [
            _PatchColours.draw(store.slide(slide_id), entry.patient_id, instance_labels[slide_id], seed)
            for entry in entries
            for slide_id in entry.slides
            if entry.split == split and _has_both(instance_labels.get(slide_id))
        ]
        for split in ("train", "test")
    }
    if not drawn["train"] or not drawn["test"]:
        reason = "no annotated patches of both classes in training or in test"
        return Comparison("patch colour", _PATCH_COLOUR_NOTE, NO_SLIDE_SCORE, Estimate(math.nan, reason=reason))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(
        np.concatenate([its.rgb for its in drawn["train"]]), np.concatenate([its.labels for its in drawn["train"]])
    )
    areas = np.array([auroc(its.labels, model.decision_function(its.rgb)) for its in drawn["test"]])
    found = mean_estimate(areas, [its.patient_id for its in drawn["test"]], seed)
    return Comparison("patch colour", _PATCH_COLOUR_NOTE, NO_SLIDE_SCORE, found)


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


def _has_both(labels: Int[np.ndarray, " instance"] | None) -> bool:
    return labels is not None and {0, 1} <= set(np.unique(labels).tolist())


def _truth(
    entries: Sequence[BagEntry], scores: Float[np.ndarray, "slide class"]
) -> tuple[Int[np.ndarray, " slide"], Float[np.ndarray, "slide class"], list[str]]:
    """Labels, scores and patients, as the metrics take them."""
    return np.array([entry.label for entry in entries]), scores, [entry.patient_id for entry in entries]
