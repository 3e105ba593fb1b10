"""A small store of patients whose hazard grows with the share of dark patches."""

from dataclasses import replace

import numpy as np
import torch

from milcore.config import SplitConfig, TrainConfig
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run
from tests.cohorts import write_features, write_store

TRAIN = TrainConfig(
    target="survival_cox",
    time="os_days",
    event="os_event",
    features="mean_rgb",
    hidden=8,
    attention_hidden=4,
    epochs=10,
    learning_rate=0.02,
)


def survival_store(uri: str, patients: int = 48, sites: bool = False) -> PatchStore:
    """Every other patient's slide holds a dark patch and the event comes four times as early."""
    store = write_store(uri, slides=patients)
    write_features(store)
    manifest, random = store.manifest(), np.random.default_rng(3)
    dark = np.array([slide.label for slide in manifest.slides])
    event_time = random.exponential(400 / (1 + 3 * dark))
    censoring = random.exponential(600, patients)
    columns = {
        "os_days": tuple(f"{np.ceil(min(pair)):.0f}" for pair in zip(event_time, censoring, strict=True)),
        "os_event": tuple(str(int(own <= other)) for own, other in zip(event_time, censoring, strict=True)),
    }
    places = ("north", "south") if sites else ("",)
    slides = tuple(replace(slide, site=places[k // 2 % len(places)]) for k, slide in enumerate(manifest.slides))
    store.write_manifest(replace(manifest, slides=slides, columns=columns))
    return store


def train(store: PatchStore, run_uri: str, config: TrainConfig = TRAIN, folds: int = 0) -> str:
    """A finished run with a third of the patients in test."""
    prepare_run(store.uri, run_uri, config, SplitConfig(val_fraction=0.2, test_fraction=0.35, folds=folds))
    if not folds:
        train_run(run_uri, LocalContext(None, torch.device("cpu")))
    for member in Run(run_uri).members(folds) if folds else ():
        train_run(member.uri, LocalContext(None, torch.device("cpu")))
    return run_uri
