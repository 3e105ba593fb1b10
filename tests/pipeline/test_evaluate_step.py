"""What the Kubeflow UI shows of an evaluation: the component's own function on artifacts of kfp."""

from pathlib import Path

import pytest
import torch
from kfp import dsl

from components.evaluate import evaluate
from milcore.config import SplitConfig, TrainConfig, TuneConfig
from milcore.runtime import storage
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.sweep import TrialResult, prepare_sweep, publish
from tests.cohorts import write_features, write_store

KINDS = {
    "metrics": dsl.Metrics, "classification": dsl.ClassificationMetrics, "report": dsl.HTML, "model_card": dsl.Markdown,
    "attention": dsl.Dataset,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run with the settings of a sweep."""
    folder = tmp_path_factory.mktemp("step")
    store = write_store(str(folder / "store"), slides=20)
    write_features(store)
    train = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=3, batch_size=4)
    spec = prepare_sweep(store.uri, str(folder / "run/tune"), TuneConfig(trials=1, train=train), SplitConfig())
    best = publish(str(folder / "run/tune"), spec, [TrialResult(0, "max", 1e-3, 3, 0.4, 0.9, "ok", None)])
    prepare_run(store.uri, str(folder / "run"), best, SplitConfig(splits=str(folder / "run/tune/splits.parquet")))
    train_run(str(folder / "run"), LocalContext(None, torch.device("cpu")))
    return str(folder / "run")


def test_every_artifact_holds_what_the_run_folder_says(run: str, tmp_path: Path) -> None:
    made = {name: kind(name=name, uri=str(tmp_path / name)) for name, kind in KINDS.items()}
    shown = evaluate.python_func(run_uri=run, sweep_uri=f"{run}/tune", baselines=False, state="", **made)
    assert shown == f"{run}/report.html"
    said = storage.read_json(f"{run}/metrics.json")
    figures = {name: value for name, value in said.items() if isinstance(value, float)}
    assert made["metrics"].metadata == figures
    assert {"auroc", "brier", "ece", "temperature"} <= figures.keys()
    curve = made["classification"].metadata["confidenceMetrics"]
    assert [point["recall"] for point in curve] == said["roc"]["true_positive_rate"]
    assert [point["falsePositiveRate"] for point in curve] == said["roc"]["false_positive_rate"]
    matrix = made["classification"].metadata["confusionMatrix"]
    assert [its["displayName"] for its in matrix["annotationSpecs"]] == ["0", "1"]
    assert [row["row"] for row in matrix["rows"]] == said["confusion"]
    for name, file in (("report", "report.html"), ("model_card", "MODEL_CARD.md")):
        assert (tmp_path / name).read_bytes() == storage.read_bytes(f"{run}/{file}")
        assert made[name].metadata["uri"] == f"{run}/{file}"
    pictures = {name for name in storage.names(f"{run}/attention") if name.endswith(".png")}
    assert {path.name for path in (tmp_path / "attention").iterdir()} == {"index.json"} | pictures
    assert len(pictures) == said["slides"]["test"]
    assert made["attention"].metadata["uri"] == f"{run}/attention"
