"""The rows a result must beat: fitted on training patients, measured on test, labels shuffled only where trained."""

from pathlib import Path

import numpy as np
import pytest
import torch

from milcore.cohort.splits import make_splits
from milcore.config import SplitConfig, TrainConfig
from milcore.evaluation.baselines import compare, estimate_localisation, shuffle_outcomes, slide_colour
from milcore.mil.bags.bags import Bags
from milcore.mil.bags.load import load_bags
from milcore.store.store import PatchStore
from tests.cohorts import write_features, write_store

CONFIG = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=2, batch_size=4)
DARK_PATCH = np.array([0, 0, 1, 0, 0, -1])


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[PatchStore, Bags]:
    store = write_store(str(tmp_path), slides=20)
    write_features(store)
    return store, load_bags(store.uri, CONFIG, make_splits(store.manifest(), SplitConfig()))


def labels_of(bags: Bags) -> dict[str, np.ndarray]:
    return {entry.bag_id: DARK_PATCH for entry in bags.entries if entry.label}


def test_shuffling_keeps_test_labels_and_the_count_in_each_split(cohort: tuple[PatchStore, Bags]) -> None:
    bags = cohort[1]
    shuffled = shuffle_outcomes(bags, seed=1)
    before, after = ([entry.label for entry in split_bags.entries] for split_bags in (bags, shuffled))
    for split in ("train", "val", "test"):
        assert sum(before[k] for k in bags.split(split)) == sum(after[k] for k in bags.split(split))
    assert [before[k] for k in bags.split("test")] == [after[k] for k in bags.split("test")]
    assert [before[k] for k in bags.split("train")] != [after[k] for k in bags.split("train")]
    assert shuffled[3].instances.data_ptr() == bags[3].instances.data_ptr()
    assert [bag.label for bag in shuffled] == [entry.label for entry in shuffled.entries]


def test_slide_colour_is_mean_and_deviation_of_every_pixel(cohort: tuple[PatchStore, Bags]) -> None:
    slide = cohort[0].slide("s01")
    pixels = slide.patches(0, len(slide)).reshape(-1, 3)
    np.testing.assert_allclose(slide_colour(slide, 0), np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]))


def test_colour_finds_a_cohort_that_differs_in_colour(cohort: tuple[PatchStore, Bags]) -> None:
    """One patch in six is dark in positive slides: mean colour tells slides apart, patch colour finds the patch."""
    store, bags = cohort
    rows = {row.name: row for row in compare(CONFIG, bags, store.catalogue(), labels_of(bags), torch.device("cpu"))}
    assert list(rows) == ["embedding-mean pooling", "slide colour", "patch colour", "shuffled training labels"]
    assert rows["slide colour"].auroc.value == 1.0
    assert rows["patch colour"].localisation_auroc.value == 1.0
    assert rows["embedding-mean pooling"].localisation_auroc.reason == "every patch weighs the same"


def test_without_annotations_patch_colour_says_why_it_is_missing(cohort: tuple[PatchStore, Bags]) -> None:
    store, bags = cohort
    mean = CONFIG.model_copy(update={"pooling": "mean"})
    rows = {row.name: row for row in compare(mean, bags, store.catalogue(), {}, torch.device("cpu"))}
    assert "embedding-mean pooling" not in rows
    assert (
        rows["patch colour"].localisation_auroc.reason == "no annotated patches of both classes in training or in test"
    )


def test_localisation_counts_positive_test_bags_only(cohort: tuple[PatchStore, Bags]) -> None:
    bags = cohort[1]
    perfect = {entry.bag_id: np.where(DARK_PATCH == 1, 0.9, 0.02) for entry in bags.entries}
    assert estimate_localisation(perfect, bags, labels_of(bags), 0).value == 1.0
    assert (
        estimate_localisation(perfect, bags, {}, 0).reason
        == "no positive test slide has patches of both classes by annotation"
    )
