"""Every command on cohorts of small slides in a bucket."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import milcore as mc
from milcore import api
from milcore.cli.info import describe
from milcore.config import IngestConfig, LaunchConfig
from milcore.ingestion import overview
from milcore.ingestion.fingerprint import store_state
from milcore.runtime import storage
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.store import PatchStore
from tests.faults.commands import PATCH_PX, write_encoder

INSTANCES, WIDTH = 20, 8
COLUMNS, ROWS = 5, 4
INGEST = IngestConfig(patch_size=PATCH_PX)
MODEL: dict[str, Any] = {"hidden": 8, "attention_hidden": 4, "batch_size": 4, "checkpoint_every": 100, "workers": 0}
# so small that it holds no features
NO_CACHE_MB = 1e-4
PARTITIONS = 2
FEW_PICTURES = 8
# one process beside this one
HERE = LaunchConfig(workers=1)


def write_files(folder: Path, slides: int) -> None:
    """Slides of 20 patches, files of as many features, labels, a manifest and an encoder."""
    (folder / "h5").mkdir(parents=True)
    (folder / "slides").mkdir()
    generator = np.random.default_rng(5)
    y, x = np.mgrid[: ROWS * PATCH_PX, : COLUMNS * PATCH_PX]
    names = [f"s{k:03d}" for k in range(slides)]
    for k, name in enumerate(names):
        pixels = np.stack([200 - x % 60, 120 + (y + k) % 40, np.full_like(x, 150 + 20 * (k % 2))], -1)
        write_pyramid(folder / "slides" / f"{name}.tiff", pixels.astype(np.uint8), 0.5, 1)
        with h5py.File(folder / "h5" / f"{name}.h5", "w") as file:
            file["features"] = generator.standard_normal((INSTANCES, WIDTH)).astype(np.float32)
            file["coords"] = np.stack([x, y], -1)[::PATCH_PX, ::PATCH_PX].reshape(-1, 2)
    labels = [f"{name},{k % 2}" for k, name in enumerate(names)]
    rows = [f"{name},slides/{name}.tiff,{k % 2}" for k, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join(["slide_id,label", *labels, ""]))
    (folder / "manifest.csv").write_text("\n".join(["slide_id,uri,label", *rows, ""]))
    write_encoder(folder / "encoder.onnx")


def upload(folder: Path, uri: str) -> None:
    """Copy all files of a folder to the bucket."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{uri}/{path.relative_to(folder)}", path.read_bytes())


def commands(uri: str, slides: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Commands and steps of the pipeline by name; each needs those before it."""
    files = f"{uri}/files"
    yield from _imports(uri, files)
    yield from _training(uri)
    yield from _pipeline(uri, files)
    yield from _prediction(uri, [f"{files}/slides/s{k:03d}.tiff" for k in range(slides)])


def _imports(uri: str, files: str) -> Iterator[tuple[str, Callable[[], object]]]:
    def make(store: str, labels: str) -> object:
        return mc.import_cohort(f"{files}/h5", f"{uri}/{store}", format="clam", labels=f"{files}/{labels}")

    yield "import with pictures", lambda: make("pictured", "manifest.csv")
    yield "import with pictures again", lambda: make("pictured", "manifest.csv")
    yield "import", lambda: make("imported", "labels.csv")
    yield "import again", lambda: make("imported", "labels.csv")


def _training(uri: str) -> Iterator[tuple[str, Callable[[], object]]]:
    store, run = f"{uri}/imported", f"{uri}/run"

    def train(name: str, **settings: object) -> object:
        return mc.train(store, f"{uri}/{name}", features="imported", **MODEL, **settings)

    yield "open", lambda: PatchStore(store).slide_ids()
    yield "info", lambda: describe(store)
    yield "train, 1 epoch", lambda: train("run1", epochs=1)
    yield "train, 2 epochs", lambda: train("run", epochs=2)
    yield "train, 1 epoch, no cache", lambda: train("run2", epochs=1, cache_mb=NO_CACHE_MB)
    yield "train, 2 epochs, no cache", lambda: train("run3", epochs=2, cache_mb=NO_CACHE_MB)
    yield "info of a run", lambda: describe(run)
    yield "evaluate, no baselines", lambda: mc.evaluate(run, baselines=False)
    yield "evaluate", lambda: mc.evaluate(f"{uri}/run1")


def _pipeline(uri: str, files: str) -> Iterator[tuple[str, Callable[[], object]]]:
    store, manifest = f"{uri}/store", f"{files}/manifest.csv"
    outcomes: list[Any] = []

    def ingest() -> None:
        outcomes.extend(api.ingest_partition(store, f"{k}/{PARTITIONS}", INGEST, HERE) for k in range(PARTITIONS))

    def encode() -> object:
        return mc.encode(store, f"onnx:{files}/encoder.onnx", name="colour", workers=0)

    def gather_few() -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(overview, "MOST_PICTURES", FEW_PICTURES)
            return api.gather_ingestion(store, outcomes)

    yield "plan", lambda: api.plan_ingestion(manifest, store, None, PARTITIONS)
    yield "survey before", lambda: store_state(store)
    yield "ingest", ingest
    yield "gather", lambda: api.gather_ingestion(store, outcomes)
    yield "survey", lambda: store_state(store)
    yield "ingest again", lambda: mc.ingest(manifest, store, workers=0, config=INGEST)
    yield "encode", encode
    yield "encode again", encode
    yield "gather, of more slides than it pictures", gather_few


def _prediction(uri: str, slides: list[str]) -> Iterator[tuple[str, Callable[[], object]]]:
    run = f"{uri}/run4"
    yield "train on encoded", lambda: mc.train(f"{uri}/store", run, features="colour", epochs=1, **MODEL)
    yield "evaluate on encoded", lambda: mc.evaluate(run, baselines=False)
    yield "predict", lambda: mc.predict(run, slides, f"{uri}/predictions")
    yield "predict again", lambda: mc.predict(run, slides, f"{uri}/predictions")

    def of_store() -> object:
        return mc.predict(run, out=f"{uri}/predictions-of-store", store=f"{uri}/store")

    yield "predict a store", of_store
    yield "predict a store again", of_store
