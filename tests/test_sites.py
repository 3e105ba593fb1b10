"""Sites from one end to the other: whole ones in splits and folds, in Python, on the command line, and when resumed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import milcore as mc
from milcore.config import PipelineSettings, SplitConfig, TrainConfig, TuneConfig
from milcore.ingestion.fingerprint import store_state
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.store import PatchStore
from milcore.training.run import prepare_run
from milcore.training.run_folder import Run
from milcore.training.sweep import prepare_sweep, sweep_folds
from tests.cohorts import write_features, write_store

SMALL = {"features": "mean_rgb", "hidden": 8, "attention_hidden": 4, "epochs": 2, "batch_size": 4}
SITES = ("Bonn", "Kiel", "Rome", "Ulm")


@pytest.fixture
def store(tmp_path: Path) -> PatchStore:
    """16 slides of as many patients, four at each site, half of them positive."""
    store = write_store(str(tmp_path / "store"), slides=16)
    write_features(store)
    give_sites(store, [SITES[k // 2 % 4] for k in range(16)])
    return store


def give_sites(store: PatchStore, sites: list[str]) -> None:
    manifest = store.manifest()
    slides = tuple(replace(slide, site=site) for slide, site in zip(manifest.slides, sites, strict=True))
    store.write_manifest(replace(manifest, slides=slides))


def test_a_run_of_whole_sites_is_trained_and_evaluated_on_a_site_it_has_not_seen(
    store: PatchStore, tmp_path: Path
) -> None:
    run = mc.train(store, tmp_path / "run", **SMALL, split_by="site")
    sites = {split: {r["site"] for r in run.splits().to_pylist() if r["split"] == split} for split in ("train", "test")}
    assert len(sites["test"]) == 1
    assert not sites["train"] & sites["test"]
    assert mc.evaluate(run, baselines=False, attention_formats=()).metrics["auroc"].reason is None


def test_each_site_is_left_out_by_one_of_the_models(store: PatchStore, tmp_path: Path) -> None:
    run = mc.train(store, tmp_path / "run", **SMALL, leave_one_site_out=True, test_fraction=0.0)
    assert run.spec().folds == 4
    site_of = dict(zip(*(run.splits()[name].to_pylist() for name in ("slide_id", "site")), strict=True))
    folds = {site_of[row["slide_id"]]: row["fold"] for row in run.predictions().to_pylist()}
    assert folds == dict(zip(SITES, range(4), strict=True))
    assert mc.train(store, tmp_path / "run", **SMALL, leave_one_site_out=True, test_fraction=0.0) == run


def test_a_run_takes_the_whole_sites_of_its_sweep_and_folds_of_trials_are_whole_too(
    store: PatchStore, tmp_path: Path
) -> None:
    config = TuneConfig(train=TrainConfig(**SMALL), objective_folds=2)
    spec = prepare_sweep(store.uri, str(tmp_path / "sweep"), config, SplitConfig(split_by="site"))
    splits = mc.Sweep(tmp_path / "sweep").splits()
    fold_of: dict[str, set[int]] = {}
    for row in sweep_folds(splits, spec.tune).to_pylist():
        fold_of.setdefault(row["site"], set()).add(row["fold"])
    assert sorted(map(len, fold_of.values())) == [1, 1, 1, 1]
    prepare_run(
        store.uri, str(tmp_path / "run"), config.train, SplitConfig(splits=str(tmp_path / "sweep/splits.parquet"))
    )
    assert Run(str(tmp_path / "run")).splits().equals(splits)


def test_a_site_that_changed_after_training_is_another_split(store: PatchStore, tmp_path: Path) -> None:
    config, by_site = TrainConfig(**SMALL), SplitConfig(split_by="site")
    prepare_run(store.uri, str(tmp_path / "run"), config, by_site)
    give_sites(store, [SITES[k // 4] for k in range(16)])
    with pytest.raises(mc.InputError, match="splits_digest"):
        prepare_run(store.uri, str(tmp_path / "run"), config, by_site)


def test_a_leak_in_a_file_is_refused_before_anything_is_written(store: PatchStore, tmp_path: Path) -> None:
    prepare_run(store.uri, str(tmp_path / "first"), TrainConfig(**SMALL), SplitConfig())
    given = SplitConfig(splits=str(tmp_path / "first/splits.parquet"), split_by="site")
    with pytest.raises(mc.InputError, match=r"splits: site '\w+': expected one split with split_by site"):
        prepare_run(store.uri, str(tmp_path / "run"), TrainConfig(**SMALL), given)
    assert not (tmp_path / "run").exists()


def test_a_pipeline_takes_whole_sites_by_its_settings() -> None:
    settings = PipelineSettings({}, '{"split": {"split_by": "site"}}')
    assert settings.split.unit == "site"
    with pytest.raises(mc.InputError, match=r"split.leave_one_site_out cannot be set here: the pipeline trains one"):
        _ = PipelineSettings({}, '{"split": {"leave_one_site_out": true}}').split


def test_a_scheduler_sees_that_patients_sites_or_splits_changed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal((200, 110, 170), 25, (192, 256, 3)).clip(0, 255).astype(np.uint8)
    write_pyramid(tmp_path / "a.tiff", pixels, 0.5, 2, quality=95)
    (tmp_path / "manifest.csv").write_text("slide_id,uri,label\na,a.tiff,1\n")
    store = mc.ingest(tmp_path / "manifest.csv", tmp_path / "store", workers=1, patch_size=64).store
    states = [store_state(store.uri)]
    manifest = store.manifest()
    for change in ({"site": "elsewhere"}, {"patient_id": "another"}, {"split": "test"}):
        slides = (replace(manifest.slides[0], **change), *manifest.slides[1:])
        store.write_manifest(replace(manifest, slides=slides))
        states.append(store_state(store.uri))
    assert len(set(states)) == 4
    assert None not in states
