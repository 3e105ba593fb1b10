"""Predictions of 2,000 bags and of 48 slides are evaluate's, and a command killed among them goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import milcore as mc
from milcore.config import ImportConfig, TrainConfig
from milcore.evaluation.evaluate import evaluate
from milcore.ingestion.imports.import_cohort import import_source
from milcore.runtime import storage
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run

pytestmark = pytest.mark.long

BAGS, TEST_BAGS, WIDTH, SEED = 2_300, 2_000, 16, 20_261_128
TRAIN = TrainConfig(features="imported", hidden=16, attention_hidden=8, epochs=1, batch_size=64)
LENGTHS = (25, 50)
# no bag fits into the memory for activations beside another: evaluate takes one at a time too
ONE_BY_ONE = {"activation_mb": 0.01}
MILCORE = str(Path(sys.executable).with_name("milcore"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PatchStore:
    """Bags of 25 to 49 instances; the label moves one instance in ten."""
    folder = tmp_path_factory.mktemp("bags")
    generator = np.random.default_rng(SEED)
    rows = []
    for k in range(BAGS):
        features = generator.normal(size=(generator.integers(*LENGTHS), WIDTH))
        features[::10] += k % 2
        rows += [{"slide_id": f"s{k:04d}", "label": k % 2, "features": instance} for instance in features.tolist()]
    storage.write_table(str(folder / "bags.parquet"), pa.Table.from_pylist(rows))
    store = PatchStore(str(folder / "store"))
    import_source(str(folder / "bags.parquet"), store.uri, ImportConfig(format="parquet", encoder_id="normal"))
    return store


def evaluated(store: PatchStore, run: str, **settings: float) -> dict[str, float]:
    """Probability of every test bag, as evaluate gives it."""
    split = mc.SplitConfig(val_fraction=0.05, test_fraction=0.9)
    prepare_run(store.uri, run, TRAIN.model_copy(update=settings), split)
    train_run(run, LocalContext(None, torch.device("cpu")))
    evaluate(run, baselines=False, attention_formats=())
    rows = storage.read_table(f"{run}/predictions.parquet").to_pylist()
    return {row["slide_id"]: row["probability"] for row in rows if row["split"] == "test"}


def predicted(run: str, store: PatchStore, out: str) -> dict[str, float]:
    predictions = mc.predict(run, store=store, out=out)
    return {name: predictions[name].probability for name in predictions}


def compare(got: dict[str, float], known: dict[str, float]) -> None:
    assert len(known) >= TEST_BAGS
    np.testing.assert_allclose([got[name] for name in known], list(known.values()), rtol=0, atol=1e-6)


def test_2000_bags_differ_from_those_that_evaluate_packs_by_rounding_only(store: PatchStore, tmp_path: Path) -> None:
    known = evaluated(store, str(tmp_path / "run"))
    compare(predicted(str(tmp_path / "run"), store, str(tmp_path / "out")), known)


def test_2000_bags_one_at_a_time_are_evaluate_s_to_the_bit_also_after_a_kill(store: PatchStore, tmp_path: Path) -> None:
    run, whole, killed = (str(tmp_path / name) for name in ("run", "whole", "killed"))
    known = evaluated(store, run, **ONE_BY_ONE)
    got = predicted(run, store, whole)
    assert len(got) == BAGS
    assert len(known) >= TEST_BAGS
    (model,) = Run(run).models()
    assert LENGTHS[1] - 1 <= model.instance_budget(torch.zeros(1, WIDTH)) < 2 * LENGTHS[0]
    assert {name: got[name] for name in known} == known

    command = [MILCORE, "predict", run, killed, "--store", store.uri]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    parts = Path(killed, "predictions")
    while not (parts.exists() and len(list(parts.glob("part-*"))) >= 3):
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not Path(killed, "summary.json").exists()
    first = {path: path.stat().st_mtime_ns for path in parts.glob("part-*")}
    assert 3 <= len(first) < len(storage.names(f"{whole}/predictions"))
    subprocess.run(command, check=True)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    for name in (*(f"predictions/{name}" for name in storage.names(f"{whole}/predictions")), "summary.json"):
        assert Path(killed, name).read_bytes() == Path(whole, name).read_bytes()


def test_48_slides_are_evaluate_s(tmp_path: Path) -> None:
    """Through ingestion and an encoder, as `make demo` makes them."""
    cohort = mc.synthesise(tmp_path / "cohort", slides=48, seed=0)
    report = mc.ingest(cohort.manifest, tmp_path / "store")
    mc.encode(report, "efficientnet_lite0")
    run = mc.train(report, tmp_path / "run", epochs=2)
    mc.evaluate(run, baselines=False, attention_formats=())
    rows = run.predictions().to_pylist()
    known = {row["slide_id"]: row["probability"] for row in rows}
    assert sum(row["split"] == "test" for row in rows) >= 5
    of_store = mc.predict(run, store=report)
    assert len(of_store) == 48
    np.testing.assert_allclose([of_store[name].probability for name in known], list(known.values()), rtol=0, atol=1e-6)
