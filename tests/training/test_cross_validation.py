"""Cross-validation: every patient is left out once, by a model that saw nothing of them; folds end as one run."""

from pathlib import Path

import pyarrow as pa
import pytest

from milcore.cluster.launch import train_with
from milcore.cohort.splits import add_folds, splits_of_fold
from milcore.config import LaunchConfig, SplitConfig, TrainConfig
from milcore.errors import InputError
from milcore.evaluation.evaluate import evaluate
from milcore.runtime import storage
from milcore.training.out_of_fold import OutOfFold
from milcore.training.run import prepare_run
from milcore.training.run_folder import Run
from milcore.training.targets import TRAINING_TARGETS
from tests.cohorts import write_features, write_store

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=2, batch_size=4)
FIVE = SplitConfig(folds=5, test_fraction=0.2)


def cohort(patients: int = 40) -> pa.Table:
    """Two slides a patient, every fourth patient positive, the first eight in the test split."""
    rows = [
        {
            "slide_id": f"p{p}s{s}",
            "patient_id": f"p{p}",
            "label": int(p % 4 == 0),
            "split": "test" if p < 8 else "train",
        }
        for p in range(patients)
        for s in range(2)
    ]
    return pa.Table.from_pylist(rows)


def test_folds_part_the_patients_outside_the_test_split_evenly_by_class() -> None:
    rows = add_folds(cohort(), FIVE).to_pylist()
    assert all((row["fold"] == -1) == (row["split"] == "test") for row in rows)
    fold_of = {row["patient_id"]: row["fold"] for row in rows}
    assert all(fold_of[row["patient_id"]] == row["fold"] for row in rows)
    sizes = [sum(other == fold for other in fold_of.values()) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 1
    positives = [len({r["patient_id"] for r in rows if r["fold"] == fold and r["label"]}) for fold in range(5)]
    assert sorted(positives) == [1, 1, 2, 2, 2]


def test_a_fold_s_model_sees_nothing_of_its_fold_nor_of_the_test_split() -> None:
    splits = add_folds(cohort(), FIVE)
    fold_of = {row["patient_id"]: row["fold"] for row in splits.to_pylist()}
    tested = []
    for fold in range(5):
        rows = splits_of_fold(splits, fold, FIVE).to_pylist()
        parts = {part: {row["patient_id"] for row in rows if row["split"] == part} for part in ("train", "val", "test")}
        assert parts["test"] == {patient for patient, other in fold_of.items() if other == fold}
        assert not parts["train"] & parts["val"]
        assert not (parts["train"] | parts["val"]) & parts["test"]
        assert {row["label"] for row in rows if row["split"] == "val"} == {0, 1}
        tested += sorted(parts["test"])
    assert sorted(tested) == sorted(patient for patient, fold in fold_of.items() if fold >= 0)


def test_more_folds_than_patients_of_a_class_are_refused() -> None:
    with pytest.raises(InputError, match=r"8 patients of class 1 outside the test split"):
        add_folds(cohort(), SplitConfig(folds=9))


def test_the_pooled_auroc_is_that_of_all_slides_left_out(tmp_path: Path) -> None:
    """Three positives over one of two negatives each time, by hand: 3 of 3 * 2 pairs, and one tie, (3 + 0.5) / 6."""
    predictions = pa.table(
        {
            "patient_id": [f"p{k}" for k in range(5)],
            "label": [1, 1, 1, 0, 0],
            "fold": pa.array([0, 0, 1, 0, 1], pa.int32()),
            "probability": [0.5, 0.4, 0.6, 0.3, 0.6],
        }
    )
    write_features(write_store(str(tmp_path / "store")))
    spec = prepare_run(str(tmp_path / "store"), str(tmp_path / "run"), TRAIN, SplitConfig(folds=2))
    metrics = TRAINING_TARGETS[spec.train.target].out_of_fold(predictions, spec)
    assert metrics.metric.value == metrics.resampled.value == pytest.approx(3.5 / 6)
    assert metrics.fold_metric == (1.0, 0.5)
    assert metrics.resampled.low <= 3.5 / 6 <= metrics.resampled.high
    assert metrics.metric.low < 3.5 / 6 < metrics.metric.high
    assert OutOfFold.from_json(metrics.to_json()) == metrics


def test_the_line_of_a_perfect_pooled_auroc_has_an_interval_with_width() -> None:
    earlier = {"folds": 2, "slides": 9, "auroc": 1.0, "interval": [0.8, 1.0], "fold_auroc": [1.0, 1.0]}
    assert OutOfFold.from_json(earlier).line.endswith("1.000 (0.800 to 1.000)")
    metrics = OutOfFold.from_json(earlier | {"interval": [1.0, 1.0], "auroc_newcombe": [0.71, 1.0]})
    assert metrics.line == "2 models; pooled AUROC of the slides left out 1.000 (0.710 to 1.000)"


def test_folds_end_with_a_model_each_and_a_prediction_of_every_slide_left_out(tmp_path: Path) -> None:
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    write_features(write_store(store, slides=16))
    prepare_run(store, run, TRAIN, SplitConfig(folds=3, test_fraction=0.25))
    train_with(run, LaunchConfig())
    assert Run(run).is_finished()
    assert Run(run).spec().folds == 3
    for fold in range(3):
        assert {"model.safetensors", "history.parquet"} <= set(storage.names(f"{run}/folds/{fold}"))
    outside = [row["slide_id"] for row in Run(run).splits().to_pylist() if row["split"] != "test"]
    predictions = storage.read_table(f"{run}/predictions.parquet").to_pylist()
    assert sorted(row["slide_id"] for row in predictions) == sorted(outside)
    fold_of = {row["slide_id"]: row["fold"] for row in Run(run).splits().to_pylist()}
    assert all(row["fold"] == fold_of[row["slide_id"]] for row in predictions)
    assert set(storage.read_table(f"{run}/history.parquet")["fold"].to_pylist()) == {0, 1, 2}
    before = storage.stat(f"{run}/out_of_fold.json")
    train_with(run, LaunchConfig(ray_address="127.0.0.1:1", workers=2))
    assert storage.stat(f"{run}/out_of_fold.json") == before


def test_one_fold_is_none() -> None:
    with pytest.raises(InputError, match="folds: expected 0 or at least 2, got 1, which leaves every patient out"):
        SplitConfig(folds=1)


def test_a_lost_summary_of_an_evaluated_run_is_made_again_and_its_predictions_stay(tmp_path: Path) -> None:
    """Those of the test split are evaluation's, which is not repeated."""
    store, uri = write_store(str(tmp_path / "store"), slides=16), str(tmp_path / "run")
    write_features(store)
    prepare_run(store.uri, uri, TRAIN, SplitConfig(folds=2))
    train_with(uri, LaunchConfig())
    evaluate(uri, baselines=False, attention_formats=())
    run = Run(uri)
    before = (run.predictions(), run.out_of_fold())
    Path(run.out_of_fold_uri).unlink()
    train_with(uri, LaunchConfig())
    assert (run.predictions(), run.out_of_fold()) == before
