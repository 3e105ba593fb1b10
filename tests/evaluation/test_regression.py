"""Evaluation of regression end to end on a small store: files, figures from other packages, objects, baselines."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

import milcore as mc
from milcore.cli.info import damage
from milcore.config import SplitConfig
from milcore.evaluation.baselines import bag_colours, shuffle_outcomes
from milcore.evaluation.evaluate import evaluate
from milcore.evaluation.evaluation import Evaluation
from milcore.evaluation.run_predictions import open_run
from milcore.mil.bags.bags import value_array
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.device import compute_device
from milcore.runtime import storage
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run
from tests.docs.test_formats import NOT_MADE, table
from tests.evaluation.regression_store import TRAIN, regression_store
from tests.evaluation.survival_store import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("regression")
    store = regression_store(str(folder / "store"), patients=60, sites=True)
    uri = train(store, str(folder / "run"), TRAIN)
    evaluate(uri, with_leave_one_out=True)
    return uri


@pytest.fixture(scope="module")
def summary(run: str) -> dict:
    return json.loads(Path(run, "metrics.json").read_text())


def test_figures_are_those_of_the_predictions(run, summary):
    rows = [row for row in pq.read_table(f"{run}/predictions.parquet").to_pylist() if row["split"] == "test"]
    true, predicted = (np.array([row[name] for row in rows]) for name in ("value", "predicted_value"))
    differences = predicted - true
    expected = {
        "r2": r2_score(true, predicted),
        "mae": mean_absolute_error(true, predicted),
        "rmse": root_mean_squared_error(true, predicted),
        "pearson": pearsonr(true, predicted)[0],
        "spearman": spearmanr(true, predicted)[0],
        "bias": differences.mean(),
        "lower_limit": differences.mean() - 1.96 * differences.std(ddof=1),
        "upper_limit": differences.mean() + 1.96 * differences.std(ddof=1),
    }
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value, abs=1e-9), name
        low, high = summary["intervals"][name]
        assert low < value < high
    assert summary["splits"]["test"] == {
        "patients": len(rows), "bags": len(rows), "mean": pytest.approx(true.mean()),
        "deviation": pytest.approx(true.std()), "lowest": true.min(), "highest": true.max(),
    }  # fmt: skip
    assert summary["reasons"] == {}


def test_metrics_say_by_what_they_were_measured(run, summary):
    training = [row["value"] for row in Run(run).splits().to_pylist() if row["split"] == "train"]
    assert (summary["target"], summary["target_column"], summary["classes"]) == ("regression", "age", [])
    scale = summary["regression"]["target_scale"]
    assert scale == {"mean": pytest.approx(np.mean(training)), "deviation": pytest.approx(np.std(training))}
    assert set(summary["sites"]) == {"north", "south"}
    assert sum(site["bags"] for site in summary["sites"].values()) == summary["regression"]["bags"]


def test_baselines_are_the_training_mean_and_models_of_the_same_split(run, summary):
    of_model = {row["name"]: row for row in summary["comparison"]}
    assert list(of_model) == [
        "gated attention pooling, embedding level",
        "training mean",
        "embedding-mean pooling",
        "slide colour",
        "shuffled training values",
    ]
    opened = open_run(run, compute_device(use_gpu=False))
    train_entries, test = ([opened.bags.entries[k] for k in opened.bags.split(name)] for name in ("train", "test"))
    true, mean = value_array(test), value_array(train_entries).mean()
    assert of_model["training mean"]["mae"] == pytest.approx(np.abs(true - mean).mean())
    assert of_model["training mean"]["r2"] == pytest.approx(r2_score(true, np.full(len(true), mean)))
    assert of_model["training mean"]["spearman"] is None
    colours = bag_colours([*train_entries, *test], opened.catalogue, TRAIN.seed)
    fitted = LinearRegression().fit([colours[e.bag_id] for e in train_entries], value_array(train_entries))
    colour = r2_score(true, fitted.predict([colours[e.bag_id] for e in test]))
    assert of_model["slide colour"]["r2"] == pytest.approx(colour)
    assert of_model["gated attention pooling, embedding level"]["r2"] > of_model["training mean"]["r2"]


def test_the_formats_name_what_is_written(run, summary):
    assert table("Regression: keys of `metrics.json`").keys() - NOT_MADE.keys() == set(summary)
    columns = pq.read_table(f"{run}/predictions.parquet").column_names
    assert list(table("Regression: columns of `predictions.parquet`")) == columns


def test_every_file_is_there_and_undamaged(run):
    report, card = Path(run, "report.html").read_text(), Path(run, "MODEL_CARD.md").read_text()
    for words in (
        "Bland-Altman",
        "Predicted against true",
        "limits of agreement",
        "training mean",
        "Research use only",
    ):
        assert words in report
    assert "Huber" in card
    assert "{{" not in report + card
    assert damage(run) == []


def test_leave_one_out_is_the_signed_change_of_the_value(run):
    """Against the model run on the bag without each patch, in the unit of the column."""
    opened = open_run(run, compute_device(use_gpu=False))
    model, index = opened.models[0], opened.bags.split("test")[0]
    rows, entry = torch.as_tensor(opened.bags[index].instances), opened.bags.entries[index]
    without = [Bag(str(k), "", 0, torch.cat([rows[:k], rows[k + 1 :]])) for k in range(len(rows))]
    deviation = float(model.constants[1])
    with torch.no_grad():
        whole, *others = model(pack([Bag("x", "", 0, rows), *without], range(len(rows) + 1)), None)[:, 0].tolist()
    table = pq.read_table(f"{run}/attention/{entry.slides[0]}.parquet")
    np.testing.assert_allclose(table["leave_one_out"].to_numpy(), deviation * (whole - np.array(others)), atol=1e-4)


def test_the_object_shows_values(run):
    evaluation = Evaluation(run)
    assert evaluation.line.startswith("r2 ")
    assert "R2" in repr(evaluation)
    slide = next(iter(evaluation.slides.values()))
    assert (slide.predicted, slide.risk, slide.label, slide.probabilities) == (None, None, "", {})
    assert 40 < slide.value < 70
    assert f"{slide.predicted_value:.4g}" in slide._repr_html_()
    assert evaluation.metrics["mae"].low < evaluation.metrics["mae"].value
    assert set(evaluation.comparison) >= {"training mean", "slide colour"}
    assert evaluation.roc.threshold == []
    assert evaluation.threshold is None
    assert "mean absolute error" in evaluation._repr_html_()


def test_shuffling_keeps_test_values_and_the_set_of_the_others(run):
    bags = open_run(run, compute_device(use_gpu=False)).bags
    again = shuffle_outcomes(bags, 0)
    for split in ("train", "val", "test"):
        before, after = ([each.entries[k].value for k in bags.split(split)] for each in (bags, again))
        assert sorted(before) == sorted(after)
        assert (before == after) == (split == "test")


def test_a_store_is_predicted_by_the_numbers_of_the_evaluation(run, tmp_path):
    """The run's features are of an encoder, as are the store's, which is its own here."""
    predictions = mc.predict(run, store=Run(run).store, out=tmp_path / "scores")
    rows = pq.read_table(f"{run}/predictions.parquet").to_pylist()
    assert {row["slide_id"]: row["predicted_value"] for row in rows} == pytest.approx(
        {name: each.predicted_value for name, each in predictions.items()}, rel=1e-6
    )
    scores = pq.read_table(tmp_path / "scores" / "predictions")
    assert scores.column_names == [
        "slide_id", "patient_id", "status", "predicted_value", "spread", "patches", "reason",
    ]  # fmt: skip
    assert storage.read_json(str(tmp_path / "scores" / "summary.json"))["target_column"] == "age"


def test_folds_predict_test_slides_by_their_mean_and_others_by_the_model_that_left_them_out(tmp_path):
    uri = train(regression_store(str(tmp_path / "store")), str(tmp_path / "run"), TRAIN, folds=2)
    summary = evaluate(uri, baselines=False)
    assert not math.isnan(summary["r2"])
    assert summary["sites"] == {}
    rows = Run(uri).predictions().to_pylist()
    assert [row["fold"] for row in rows].count(-1) == summary["slides"]["test"]
    opened = open_run(uri, compute_device(use_gpu=False))
    for index, row in enumerate(rows):
        members = opened.predictions[index].members[:, 0]
        assert len(members) == (2 if row["fold"] < 0 else 1)
        assert row["predicted_value"] == pytest.approx(members.mean())
    assert "± " in Path(uri, "report.html").read_text()


def test_a_constant_test_split_has_reasons_in_place_of_numbers(tmp_path):
    store = regression_store(str(tmp_path / "store"))
    uri = train(store, str(tmp_path / "run"), TRAIN)
    test = [row["slide_id"] for row in Run(uri).splits().to_pylist() if row["split"] == "test"]
    manifest = store.manifest()
    values = tuple(
        "55" if slide.slide_id in test else text
        for slide, text in zip(manifest.slides, manifest.columns["age"], strict=True)
    )
    store.write_manifest(type(manifest)(manifest.slides, manifest.classes, {"age": values}))
    summary = evaluate(uri, baselines=False, labels_from="manifest")
    assert {name for name, value in summary.items() if value is None} == {"r2", "pearson", "spearman"}
    assert summary["reasons"]["r2"] == "all true values of the split are equal"
    assert summary["mae"] > 0
    assert summary["label_changes"][0].endswith(", is 55")


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    config = TRAIN.model_copy(update={"checkpoint_every": 1, "epochs": 4, "ema_decay": 0.5})
    store = regression_store(str(tmp_path / "store"))
    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    for uri in (whole, stopped):
        prepare_run(store.uri, uri, config, SplitConfig())

    class Stop(LocalContext):
        def report(self, epoch, metrics, checkpoint):
            super().report(epoch, metrics, checkpoint)
            if epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(stopped, Stop(Run(stopped).checkpoints_uri, torch.device("cpu")))
    assert not Run(stopped).is_finished()
    for uri in (whole, stopped):
        train_run(uri, LocalContext(Run(uri).checkpoints_uri, torch.device("cpu")))
    first, second = (Run(uri).models()[0].state_dict() for uri in (whole, stopped))
    assert all(torch.equal(first[name], second[name]) for name in first)
