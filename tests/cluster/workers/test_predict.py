"""Ray workers predict a store as one process does, to the bit, also when they are killed on the way."""

import os
import signal
from pathlib import Path

import pytest
import torch

import milcore as mc
from milcore.cluster.launch import predict_with
from milcore.config import LaunchConfig, PredictConfig, SplitConfig, TrainConfig
from milcore.evaluation import predict_store, store_parts
from milcore.evaluation.predict_store import PartScoring, PartTask, prepare_store_predictions, score_part
from milcore.runtime import storage
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from tests.cohorts import write_features, write_store
from tests.ray_node import Head

SLIDES = 8
TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=1, batch_size=4)


def trained(folder: str) -> tuple[str, str]:
    """A run and the store of its cohort."""
    store, run = storage.join(folder, "store"), storage.join(folder, "run")
    write_features(write_store(store, SLIDES))
    prepare_run(store, run, TRAIN, SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    return run, store


def predicted(run: str, store: str, out: str, launch: LaunchConfig) -> dict[str, bytes]:
    """Files of the data set by name."""
    prepare_store_predictions(run, store, out, PredictConfig(attention_formats=("parquet",)))
    predict_with(out, launch)
    files = storage.read_all(sorted(storage.files(storage.join(out, "predictions"))))
    files |= storage.read_all(sorted(storage.files(storage.join(out, "attention"))))
    return {uri.removeprefix(out): data for uri, data in files.items()}


def score_after_a_death(scoring: PartScoring, task: PartTask) -> int:
    """Scores a part; the worker of the second one is killed once, as it begins."""
    died = Path(scoring.out_uri) / "died"
    if task.part.file.startswith("part-000001") and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return score_part(scoring, task)


def test_two_workers_one_killed_predict_what_one_process_predicts_to_the_bit(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_parts, "BAGS_PER_PART", 3)
    run, store = trained(str(tmp_path))
    alone = predicted(run, store, str(tmp_path / "alone"), LaunchConfig())
    assert len(alone) == 3 + SLIDES
    monkeypatch.setattr(predict_store, "score_part", score_after_a_death)
    together = predicted(run, store, str(tmp_path / "together"), LaunchConfig(workers=2))
    assert (tmp_path / "together/died").exists()
    assert together == alone


def test_a_job_predicts_a_store_on_s3(
    standing_ray: Head, s3: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = storage.join(s3, tmp_path.name)
    run, store = trained(folder)
    out, at = storage.join(folder, "out"), standing_ray.dashboard
    predictions = mc.predict(run, out=out, store=store, workers=2, ray_address=at)
    assert f"python -m milcore.cluster predict {out} --workers 2" in capfd.readouterr().err
    here = mc.predict(run, store=store)
    assert predictions.ok == here.ok
    assert len(here) == SLIDES
    assert {name: each.probability for name, each in predictions.items()} == {
        name: each.probability for name, each in here.items()
    }
