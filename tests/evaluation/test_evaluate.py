"""Evaluation end to end on a small store: every file of the contract, each number where it belongs, no leak."""

import dataclasses
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from milcore.cli.info import damage
from milcore.cohort.manifest import Manifest
from milcore.cohort.splits import splits_digest, splits_table
from milcore.config import LABEL_SOURCES, LabelSource, SplitConfig, TrainConfig, TuneConfig
from milcore.errors import DamageError, InputError, MILError, StoreError
from milcore.evaluation.attention.checks import check_attention
from milcore.evaluation.attention.write import SUFFIXES
from milcore.evaluation.decision import choose_rule
from milcore.evaluation.evaluate import download_overlays, evaluate
from milcore.evaluation.run_predictions import open_run
from milcore.metrics.classification import choose_threshold
from milcore.mil.bags.load import load_bags
from milcore.runtime import storage
from milcore.store.store import PatchStore
from milcore.training import run_files
from milcore.training.context import LocalContext
from milcore.training.loop import train_model
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run
from milcore.training.search_space import trial_configs
from milcore.training.sweep import Sweep, TrialResult, prepare_sweep, publish
from tests.cohorts import PATCH_PX, as_folds, relabel, rewrite_json, rewrite_metadata, write_features, write_store

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=12, batch_size=4, learning_rate=0.02)


def annotate(store: PatchStore, folder: Path) -> None:
    """The dark patch of every positive slide, as a square of GeoJSON."""
    x = 2 * PATCH_PX
    ring = [[x, 0], [x + PATCH_PX, 0], [x + PATCH_PX, PATCH_PX], [x, PATCH_PX], [x, 0]]
    (folder / "lesion.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    table = store.manifest().to_table()
    uris = [str(folder / "lesion.geojson") if label else None for label in table["label"].to_pylist()]
    place = table.schema.get_field_index("annotation")
    store.write_manifest(Manifest.from_table(table.set_column(place, table.schema.field(place), pa.array(uris))))


def copy_store(run_uri: str, uri: str) -> None:
    """A run's store with the annotation beside it, which it names by the way from the store."""
    before = Path(Run(run_uri).spec().store_uri)
    shutil.copytree(before, uri)
    shutil.copy(before.parent / "lesion.geojson", Path(uri).parent)


@pytest.fixture(scope="module")
def run_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("evaluate")
    store = write_store(str(folder / "store"), slides=20)
    write_features(store)
    annotate(store, folder)
    run = str(folder / "run")
    prepare_run(store.uri, run, TRAIN, SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    return run


@pytest.fixture(scope="module")
def summary(run_uri: str) -> dict[str, object]:
    return evaluate(run_uri)


def test_a_cohort_that_differs_in_one_patch_is_classified_and_the_patch_localised(summary: dict[str, object]) -> None:
    assert summary["auroc"] == 1.0
    assert summary["localisation_auroc"] == 1.0
    assert summary["localised"] == 3
    names = [row["name"] for row in summary["comparison"]]
    assert names[0] == "gated attention pooling, embedding level"
    assert names[1:] == ["embedding-mean pooling", "slide colour", "patch colour", "shuffled training labels"]


def test_the_run_folder_holds_what_was_returned(run_uri: str, summary: dict[str, object]) -> None:
    assert storage.read_json(f"{run_uri}/metrics.json") == summary | {"report": "report.html"}
    assert summary["report"] == f"{run_uri}/report.html"
    assert "Research use only" in storage.read_bytes(f"{run_uri}/report.html").decode()
    assert "Research use only" in storage.read_bytes(f"{run_uri}/MODEL_CARD.md").decode()


def test_every_slide_is_predicted_once_and_the_threshold_is_validation_s(
    run_uri: str, summary: dict[str, object]
) -> None:
    table = storage.read_table(f"{run_uri}/predictions.parquet")
    assert table.column_names == ["slide_id", "patient_id", "label", "split", "fold", "probability"]
    rows = table.to_pylist()
    assert [row["slide_id"] for row in rows] == Run(run_uri).splits()["slide_id"].to_pylist()
    val = [row for row in rows if row["split"] == "val"]
    labels, probability = np.array([r["label"] for r in val]), np.array([r["probability"] for r in val])
    assert summary["threshold"] == choose_threshold(labels, probability).value


def test_attention_of_every_test_slide_lies_at_its_place(run_uri: str, summary: dict[str, object]) -> None:
    tested = [row["slide_id"] for row in Run(run_uri).splits().to_pylist() if row["split"] == "test"]
    names = storage.names(f"{run_uri}/attention")
    assert names == sorted(
        ["files.json", "index.json"] + [f"{name}.{form}" for name in tested for form in SUFFIXES.values()]
    )
    positive = next(slide_id for slide_id in tested if int(slide_id[1:]) % 2)
    table = storage.read_table(f"{run_uri}/attention/{positive}.parquet")
    assert table["x"].to_pylist() == [PATCH_PX * k for k in range(6)]
    assert sum(table["weight"].to_pylist()) == pytest.approx(1.0)
    assert np.argmax(table["weight"].to_numpy()) == 2
    picture = np.asarray(Image.open(io.BytesIO(storage.read_bytes(f"{run_uri}/attention/{positive}.png"))))
    assert picture.shape == (PATCH_PX, 6 * PATCH_PX, 3)
    yellow = picture[..., 0].astype(int) - picture[..., 2]
    assert yellow[8, 2 * PATCH_PX + 8] == yellow.max()


def test_damaged_overlays_are_not_downloaded(run_uri: str, summary: dict[str, object], tmp_path: Path) -> None:
    folder = Path(run_uri, "attention")
    pictures = sorted(folder.glob("*.png"))
    download_overlays(run_uri, str(tmp_path / "there"))
    there = {file.name: file.read_bytes() for file in (tmp_path / "there").iterdir()}
    assert there == {file.name: file.read_bytes() for file in [*pictures, folder / "index.json"]}
    for file in (pictures[0], folder / "index.json"):
        file.write_bytes(pictures[1].read_bytes())
        with pytest.raises(DamageError, match=f"{file}: expected the file that was published"):
            download_overlays(run_uri, str(tmp_path / "changed"))
        assert any(str(file) in line for line in damage(run_uri))
        file.unlink()
        with pytest.raises(DamageError, match=f"{file}: expected the file that was published, got no object"):
            download_overlays(run_uri, str(tmp_path / "lost"))
        file.write_bytes(there[file.name])


def test_attention_checks_return_their_estimates_in_the_order_of_the_metrics(
    run_uri: str, summary: dict[str, object]
) -> None:
    run = open_run(run_uri, torch.device("cpu"))
    checks = check_attention(run, choose_rule(run.split("val")), {})
    assert tuple(checks.estimates) == ("localisation_auroc", "localisation_ap", "flipping_area")
    assert [name for name in summary if name in checks.estimates] == list(checks.estimates)
    assert checks.estimates["flipping_area"].value == summary["flipping_area"]
    assert checks.estimates["localisation_auroc"].reason is not None


def test_without_baselines_only_the_model_is_compared(run_uri: str, summary: dict[str, object]) -> None:
    assert len(evaluate(run_uri, baselines=False)["comparison"]) == 1


def test_test_labels_choose_nothing(tmp_path: Path) -> None:
    """Turning every test label over changes what is measured and nothing that was selected.

    One validation slide has the wrong label, so that a temperature is best and a threshold has something to weigh.
    """
    store = write_store(str(tmp_path / "store"), slides=24)
    write_features(store)
    prepare_run(store.uri, str(tmp_path / "plan"), TRAIN, SplitConfig(val_fraction=0.4))
    rows = Run(str(tmp_path / "plan")).splits().to_pylist()
    split_of = {row["slide_id"]: row["split"] for row in rows}
    relabel(store, {next(row["slide_id"] for row in rows if row["split"] == "val" and row["label"]): 0})
    chosen, metrics = selected(store, split_of, tmp_path / "as_is")
    relabel(store, {row["slide_id"]: 1 - row["label"] for row in rows if row["split"] == "test"})
    chosen_turned, metrics_turned = selected(store, split_of, tmp_path / "turned")
    assert chosen == chosen_turned
    assert chosen["temperature"] != 1.0
    assert metrics["auroc"] == pytest.approx(1.0 - metrics_turned["auroc"])
    assert metrics["confusion"] != metrics_turned["confusion"]


def selected(store: PatchStore, split_of: dict[str, str], folder: Path) -> tuple[dict[str, object], dict[str, Any]]:
    """All that is chosen on the way from a sweep to an evaluation of one splits table, and the metrics."""
    store_uri = store.uri
    splits_uri, run, out = (str(folder / name) for name in ("splits.parquet", "run", "sweep"))
    storage.write_table(splits_uri, splits_table(store.manifest(), split_of))
    tune = TuneConfig(poolings=("attention", "max"), trials=2, train=TRAIN)
    spec = prepare_sweep(store_uri, out, tune, SplitConfig(splits=splits_uri))
    bags = load_bags(store_uri, TRAIN, Sweep(out).splits())
    ended = []
    for k, trial in enumerate(trial_configs(tune)):
        fitted = train_model(trial, bags, LocalContext(None, torch.device("cpu")))
        ended.append(TrialResult(k, trial.pooling, trial.learning_rate, fitted.best_epoch, *fitted.best, "ok", None))
    best = publish(out, spec, ended)
    prepare_run(store_uri, run, best, SplitConfig(splits=splits_uri))
    train_run(run, LocalContext(None, torch.device("cpu")))
    summary = evaluate(run, baselines=False)
    chosen = {name: summary[name] for name in ("threshold", "threshold_origin", "temperature", "temperature_origin")}
    chosen |= {"settings": best, "trials": ended, "verdict": Sweep(out).verdict()}
    weights = load(storage.read_bytes(f"{run}/model.safetensors"))  # the file's header has no fixed order
    chosen |= {"weights": {name: value.tolist() for name, value in weights.items()}}
    chosen |= {"probability": storage.read_table(f"{run}/predictions.parquet")["probability"].to_pylist()}
    return chosen, summary


def test_a_run_whose_instances_changed_is_refused(tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"))
    write_features(store)
    run = str(tmp_path / "run")
    config = TRAIN.model_copy(update={"epochs": 1})
    prepare_run(store.uri, run, config, SplitConfig())
    with pytest.raises(InputError, match="is not finished"):
        evaluate(run)
    train_run(run, LocalContext(None, torch.device("cpu")))
    slide = store.slide("s00")
    attrs, values = slide.feature_attrs("mean_rgb"), slide.features("mean_rgb").read(0, len(slide))
    slide.write_features("mean_rgb", values, attrs | {"weights_digest": "1" * 64})
    with pytest.raises(
        StoreError, match=r"those of one encoder, got another weights_digest for slide 's01' than for 's00'"
    ):
        evaluate(run)
    slide.write_features("mean_rgb", np.zeros((6, 3), np.float16), attrs)
    with pytest.raises(StoreError, match=r"expected the instances that .* was trained on"):
        evaluate(run)


def test_features_of_another_encoder_than_the_run_s_are_refused(tmp_path: Path) -> None:
    """Equal features, but said to be another encoder's: neither evaluated nor trained on in the run's folder."""
    store = write_store(str(tmp_path / "store"))
    write_features(store)
    run, config = str(tmp_path / "run"), TRAIN.model_copy(update={"epochs": 1})
    prepare_run(store.uri, run, config, SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    for slide_id in store.slide_ids():
        slide = store.slide(slide_id)
        attrs, values = slide.feature_attrs("mean_rgb"), slide.features("mean_rgb").read(0, len(slide))
        slide.write_features("mean_rgb", values, attrs | {"weights_digest": "1" * 64})
    with pytest.raises(StoreError, match="expected the weights_digest that the run was trained on"):
        evaluate(run)
    with pytest.raises(InputError, match=r"origin\.encoder\.weights_digest was '0+', now '1+'"):
        prepare_run(store.uri, run, config, SplitConfig())


@pytest.fixture
def corrected(run_uri: str, tmp_path: Path) -> tuple[str, PatchStore]:
    """The run of the module and its store, copied, so that the labels of the manifest can be corrected."""
    run, store = tmp_path / "run", PatchStore(str(tmp_path / "store"))
    copy_store(run_uri, store.uri)
    run.mkdir()
    for name in ("splits.parquet", "history.parquet", "model.safetensors", "config.json"):
        shutil.copy(f"{run_uri}/{name}", run / name)
    rewrite_json(str(run / "config.json"), {"store_uri": store.uri})
    return str(run), store


def quick(run: str, labels_from: LabelSource | None = None) -> dict[str, Any]:
    return evaluate(run, baselines=False, attention_formats=("parquet",), labels_from=labels_from)


def labels_of(run: str) -> dict[str, int]:
    rows = storage.read_table(f"{run}/predictions.parquet").to_pylist()
    return {row["slide_id"]: row["label"] for row in rows}


def test_a_label_corrected_after_training_is_refused_until_one_is_chosen(corrected: tuple[str, PatchStore]) -> None:
    run, store = corrected
    trained = {row["slide_id"]: row["label"] for row in Run(run).splits().to_pylist()}
    tested = next(row["slide_id"] for row in Run(run).splits().to_pylist() if row["split"] == "test" and row["label"])
    relabel(store, {tested: 0})
    change = f"slide {tested} was 1, is 0"
    with pytest.raises(
        StoreError, match=rf"labels that the run was trained on, got others \({change}\).*--labels-from run"
    ):
        quick(run)
    assert not storage.exists(f"{run}/predictions.parquet")
    assert (quick(run, "run")["auroc"], labels_of(run)) == (1.0, trained)
    summary = quick(run, "manifest")
    assert (summary["labels_from"], summary["label_changes"]) == ("manifest", [change])
    assert summary["auroc"] < 1.0
    assert labels_of(run) == trained | {tested: 0}
    for name in ("report.html", "MODEL_CARD.md"):
        text = storage.read_bytes(f"{run}/{name}").decode()
        assert "of the manifest as it is now (--labels-from manifest)" in text
        assert change in text


def test_a_sweep_that_saw_the_test_split_is_not_shown_as_one_that_did_not(run_uri: str, tmp_path: Path) -> None:
    sweep, tune = str(tmp_path / "sweep"), TuneConfig(poolings=("attention",), trials=1, train=TRAIN)
    spec = prepare_sweep(Run(run_uri).spec().store_uri, sweep, tune, SplitConfig(split_seed=1))
    with pytest.raises(InputError, match="is not finished"):
        evaluate(run_uri, baselines=False, sweep_uri=sweep)
    publish(sweep, spec, [TrialResult(0, "attention", TRAIN.learning_rate, 1, 0.5, 1.0, "ok", None)])
    with pytest.raises(InputError, match=r"sweep: expected one that saw no patient of the run's test split, .* \(s"):
        evaluate(run_uri, baselines=False, sweep_uri=sweep)


def test_labels_that_agree_are_said_to_where_one_is_chosen(corrected: tuple[str, PatchStore]) -> None:
    run, _ = corrected
    assert "labels_from" not in quick(run)
    assert quick(run, "run")["label_changes"] == []
    assert (
        "as the run was trained on them (--labels-from run); run and manifest agree"
        in storage.read_bytes(f"{run}/MODEL_CARD.md").decode()
    )


def test_classes_in_another_order_keep_the_probability_of_each_slide_s_class(corrected: tuple[str, PatchStore]) -> None:
    run, store = corrected
    before = quick(run)
    relabel(store, {slide_id: 1 - label for slide_id, label in labels_of(run).items()}, classes=("1", "0"))
    with pytest.raises(StoreError, match="the classes were 0, 1, are 1, 0"):
        quick(run)
    for source in LABEL_SOURCES:
        summary = quick(run, source)
        assert summary | before == summary
    assert (before["classes"], before["auroc"]) == (["0", "1"], 1.0)


def test_a_class_that_the_run_does_not_know_cannot_be_taken(corrected: tuple[str, PatchStore]) -> None:
    run, store = corrected
    relabel(store, {}, classes=("0", "carcinoma"))
    with pytest.raises(StoreError, match=r"slide s01 was 1, is carcinoma; .*; and 5 more\)"):
        quick(run)
    with pytest.raises(InputError, match=r"labels_from: .*slide s01 is carcinoma; .*allowed: 0, 1;"):
        quick(run, "manifest")
    assert quick(run, "run")["auroc"] == 1.0
    with pytest.raises(InputError, match="labels_from: expected where labels come from, got 'store'"):
        quick(run, "store")  # type: ignore[arg-type]


def test_patients_and_slides_that_changed_are_told_and_a_patient_in_two_splits_refused(
    corrected: tuple[str, PatchStore],
) -> None:
    run, store = corrected
    rows = Run(run).splits().to_pylist()
    one, other = (next(row for row in rows if row["split"] == split) for split in ("train", "test"))
    slides = store.manifest().slides
    of_one = [dataclasses.replace(s, patient_id="px") if s.slide_id == one["slide_id"] else s for s in slides]
    store.write_manifest(Manifest(tuple(of_one), ("0", "1")))
    with pytest.raises(StoreError, match=f"slide {one['slide_id']} was of patient {one['patient_id']}, is of px"):
        quick(run)
    quick(run, "manifest")
    patients = storage.read_table(f"{run}/predictions.parquet")
    assert patients["patient_id"].to_pylist().count("px") == 1
    of_both = [dataclasses.replace(s, patient_id="px") if s.slide_id == other["slide_id"] else s for s in of_one]
    store.write_manifest(Manifest(tuple(of_both), ("0", "1")))
    with pytest.raises(InputError, match="patient 'px': expected one split"):
        quick(run, "manifest")
    positive = next(row["slide_id"] for row in rows if row["label"])
    store.write_manifest(Manifest(tuple(s for s in slides if s.slide_id != positive), ("0", "1")))
    with pytest.raises(StoreError, match=f"slide {positive} was 1, is not in the manifest"):
        quick(run)
    with pytest.raises(InputError, match=f"expected a slide of the manifest, got '{positive}'"):
        quick(run, "manifest")
    assert quick(run, "run")["auroc"] == 1.0


def test_a_bag_of_a_patient_s_slides_is_trained_and_explained_slide_by_slide(tmp_path: Path) -> None:
    """Twenty slides of ten patients, two each with one label: a prediction per patient, attention per slide."""
    store = write_store(str(tmp_path / "store"), slides=20)
    write_features(store)
    annotate(store, tmp_path)
    table = store.manifest().to_table()
    patients = [f"p{k % 2}{k // 4}" for k in range(20)]
    place = table.schema.get_field_index("patient_id")
    store.write_manifest(Manifest.from_table(table.set_column(place, table.schema.field(place), pa.array(patients))))
    run = str(tmp_path / "run")
    config = TRAIN.model_copy(update={"bag": "patient"})
    prepare_run(store.uri, run, config, SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    summary = evaluate(run)
    rows = storage.read_table(f"{run}/predictions.parquet").to_pylist()
    assert sorted(row["patient_id"] for row in rows) == sorted(set(patients))
    assert {slide_id for row in rows for slide_id in row["slide_id"].split(";")} == set(store.slide_ids())
    assert summary["auroc"] == 1.0
    assert summary["localisation_auroc"] == 1.0
    tested = [slide_id for row in rows if row["split"] == "test" for slide_id in row["slide_id"].split(";")]
    assert summary["slides"]["test"] == len(tested)
    tables = [storage.read_table(f"{run}/attention/{slide_id}.parquet") for slide_id in tested]
    assert [len(table) for table in tables] == [6] * len(tested)
    assert sum(table["weight"].to_numpy().sum() for table in tables) == pytest.approx(len(tested) / 2)


def test_three_classes_are_separated_and_each_against_the_rest(tmp_path: Path) -> None:
    """Class c is the number of dark patches; the likeliest class is called."""
    store = write_store(str(tmp_path / "store"), slides=36)
    rows = [row | {"label": k % 3} for k, row in enumerate(store.manifest().to_table().to_pylist())]
    slides = Manifest.from_table(store.manifest().to_table()).slides
    relabelled = tuple(dataclasses.replace(slide, label=row["label"]) for slide, row in zip(slides, rows, strict=True))
    store.write_manifest(Manifest(relabelled, ("adenoma", "benign", "carcinoma")))
    for slide in relabelled:
        colour = np.full((6, 3), 0.2, np.float16)
        colour[0, slide.label] = 1.0
        store.slide(slide.slide_id).write_features(
            "mean_rgb", colour, {"encoder": "by hand", "weights_digest": "0" * 64}
        )
    run = str(tmp_path / "run")
    prepare_run(store.uri, run, TRAIN.model_copy(update={"epochs": 10, "learning_rate": 0.05}), SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    summary = evaluate(run)
    table = storage.read_table(f"{run}/predictions.parquet")
    probability = np.stack([table[f"probability_{name}"].to_numpy() for name in summary["classes"]], axis=1)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, atol=1e-6)
    test = np.array(table["split"].to_pylist()) == "test"
    truth = table["label"].to_numpy()[test]
    assert summary["accuracy"] == pytest.approx(np.mean(probability[test].argmax(axis=1) == truth))
    assert summary["accuracy"] == summary["auroc"] == summary["per_class"]["carcinoma"]["auroc"] == 1.0
    assert np.trace(summary["confusion"]) == test.sum()
    assert summary["threshold"] is None
    page = storage.read_bytes(f"{run}/report.html").decode()
    assert "<h1>3 classes: adenoma, benign, carcinoma</h1>" in page
    assert "called carcinoma" in page


def test_a_run_of_folds_is_judged_held_out_and_tested_together(run_uri: str, tmp_path: Path) -> None:
    spec, splits = Run(run_uri).spec(), f"{run_uri}/splits.parquet"
    other = str(tmp_path / "other")
    prepare_run(spec.store_uri, other, TRAIN.model_copy(update={"seed": 5}), SplitConfig(splits=splits))
    train_run(other, LocalContext(None, torch.device("cpu")))
    folded = as_folds([run_uri, other], str(tmp_path / "folded"))
    summary = evaluate(folded, attention_formats=("parquet",), with_leave_one_out=True)
    assert summary["comparison"][1]["auroc"] is not None
    evaluate(other, baselines=False, attention_formats=("parquet",))
    evaluate(run_uri, baselines=False, attention_formats=("parquet",))
    alone = [storage.read_table(f"{uri}/predictions.parquet").to_pylist() for uri in (run_uri, other)]
    together = storage.read_table(f"{folded}/predictions.parquet").to_pylist()
    for row, *each in zip(together, *alone, strict=True):
        of_runs = [other["probability"] for other in each]
        if row["split"] == "test":
            assert row["fold"] == -1
            assert row["probability"] == pytest.approx(np.mean(of_runs), abs=1e-6)
        else:
            assert row["split"] == "val"
            assert row["probability"] == pytest.approx(of_runs[row["fold"]], abs=1e-6)
    assert summary["folds"] == 2
    tested = next(row["slide_id"] for row in together if row["split"] == "test" and row["label"])
    table = storage.read_table(f"{folded}/attention/{tested}.parquet")
    assert np.argmax(table["leave_one_out"].to_numpy()) == 2
    assert np.argmax(table["score"].to_numpy()) == 2


def test_attention_of_a_model_trained_on_shuffled_labels_is_warned_of(run_uri: str, tmp_path: Path) -> None:
    summary = evaluate(run_uri, baselines=False)
    assert summary["localisation_auroc"] == 1.0
    assert summary["flipping_area"] > 0.0
    rows = Run(run_uri).splits().to_pylist()
    for split in ("train", "val"):
        places = [k for k, row in enumerate(rows) if row["split"] == split]
        # half of each class changes sides, so that nothing can be learnt
        for k, place in enumerate(sorted(places, key=lambda place: rows[place]["label"])):
            rows[place]["label"] = k % 2
    store, run = PatchStore(str(tmp_path / "store")), str(tmp_path / "run")
    copy_store(run_uri, store.uri)
    manifest = relabel(store, {row["slide_id"]: row["label"] for row in rows})
    splits = splits_table(manifest, {row["slide_id"]: row["split"] for row in rows})
    storage.write_table(str(tmp_path / "splits.parquet"), splits)
    config = TRAIN.model_copy(update={"epochs": 1, "learning_rate": 1e-4})
    prepare_run(store.uri, run, config, SplitConfig(splits=str(tmp_path / "splits.parquet")))
    train_run(run, LocalContext(None, torch.device("cpu")))
    warned = evaluate(run, baselines=False)
    assert any(warning.startswith("Attention is flat") for warning in warned["warnings"])
    assert "Attention is flat" in storage.read_bytes(f"{run}/report.html").decode()


def with_id(table: pa.Table, slide_id: str, other_id: str) -> pa.Table:
    """A manifest or splits with another id in place of one."""
    ids = [other_id if name == slide_id else name for name in table["slide_id"].to_pylist()]
    return table.set_column(0, table.schema.field(0), pa.array(ids))


@pytest.mark.parametrize("consistent", [True, False], ids=["manifest and splits", "attributes"])
def test_a_store_of_another_author_writes_and_removes_nothing_outside_the_run(
    run_uri: str, tmp_path: Path, consistent: bool
) -> None:
    """The id of a test slide is a path out of the folder ``attention``, to a folder of somebody else."""
    store, run, other_id = tmp_path / "store", tmp_path / "home/deep/run", "../../x"
    shutil.copytree(Path(run_uri).parent / "store", store)
    shutil.copytree(run_uri, run)
    slide_id = next(row["slide_id"] for row in Run(str(run)).splits().to_pylist() if row["split"] == "test")
    config, group = storage.read_json(str(run / "config.json")), store / f"slides/{slide_id}.zarr"
    rewrite_metadata(str(group), {}, {"slide_id": other_id})
    if consistent:
        group.rename(store / f"slides/{other_id}.zarr")
        for file in (store / "manifest.parquet", run / "splits.parquet"):
            run_files.publish(
                {str(file): storage.table_bytes(with_id(storage.read_table(str(file)), slide_id, other_id))}
            )
        splits = storage.read_table(str(run / "splits.parquet"))
        features = {
            name: store / f"slides/{name}.zarr/features/mean_rgb/zarr.json" for name in splits["slide_id"].to_pylist()
        }
        digests = {name: storage.read_json(str(file))["attributes"]["digest"] for name, file in features.items()}
        instances = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        config |= {"splits_digest": splits_digest(splits), "instance_digest": instances}
    rewrite_json(str(run / "config.json"), config | {"store_uri": str(store)})
    (tmp_path / "home/deep/x.zarr").mkdir()
    (tmp_path / "home/deep/x.zarr/keep.txt").write_text("mine")
    with pytest.raises(MILError, match=r"slide_id: expected a name for files, got '\.\./\.\./x'") as raised:
        evaluate(str(run), baselines=False)
    assert raised.value.exit_code == 2
    assert (tmp_path / "home/deep/x.zarr/keep.txt").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "home/deep").iterdir()) == ["run", "x.zarr"]
