"""A small store of patients whose value is higher where their slide holds a dark patch."""

from dataclasses import replace

import numpy as np

from milcore.config import TrainConfig
from milcore.store.store import PatchStore
from tests.cohorts import write_features, write_store

TRAIN = TrainConfig(
    target="regression",
    target_column="age",
    features="mean_rgb",
    hidden=8,
    attention_hidden=4,
    epochs=10,
    learning_rate=0.02,
)


def regression_store(uri: str, patients: int = 36, sites: bool = False) -> PatchStore:
    """A slide of each patient; values 60 with the dark patch and 50 without, and normal noise of 3."""
    store = write_store(uri, slides=patients)
    write_features(store)
    manifest, random = store.manifest(), np.random.default_rng(3)
    values = [50 + 10 * slide.label + 3 * random.normal() for slide in manifest.slides]
    places = ("north", "south") if sites else ("",)
    slides = tuple(replace(slide, site=places[k // 2 % len(places)]) for k, slide in enumerate(manifest.slides))
    store.write_manifest(replace(manifest, slides=slides, columns={"age": tuple(f"{value:.3f}" for value in values)}))
    return store
