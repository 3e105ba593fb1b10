"""A run scores a store: evaluate's numbers, part by part, only of the encoder that made the run's features."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import milcore as mc
from milcore.cohort.manifest import Slide
from milcore.config import EncoderRecord, ImportConfig, IngestConfig, InstanceOrigin, PredictConfig, TrainConfig
from milcore.errors import InputError, StoreError
from milcore.evaluation import store_parts
from milcore.evaluation.evaluate import evaluate
from milcore.evaluation.predict_store import (
    PartTask,
    check_ingestion,
    is_same_encoder,
    predict_parts,
    prepare_store_predictions,
    read_store_predictions,
)
from milcore.evaluation.prediction_rows import PREDICTION_ROWS
from milcore.evaluation.store_parts import StoreSlide, divide
from milcore.ingestion.imports.import_cohort import import_source
from milcore.runtime import storage
from milcore.store.metadata import write_group
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run
from tests.cohorts import as_folds, write_features, write_store
from tests.evaluation.survival_store import survival_store
from tests.evaluation.survival_store import train as train_survival

SLIDES = 12
# no bag fits into the memory for activations beside another: evaluate takes one at a time too
ONE_BY_ONE = 1e-4
TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=2, batch_size=4, activation_mb=ONE_BY_ONE)


def train(store: PatchStore, run: str, config: TrainConfig = TRAIN) -> str:
    prepare_run(store.uri, run, config, mc.SplitConfig(val_fraction=0.3, test_fraction=0.4))
    train_run(run, LocalContext(None, torch.device("cpu")))
    return run


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of features and a run evaluated on it."""
    folder = tmp_path_factory.mktemp("cohort")
    store = write_store(str(folder / "store"), SLIDES)
    write_features(store)
    evaluate(train(store, str(folder / "run")), baselines=False, attention_formats=("parquet",))
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_parts, "BAGS_PER_PART", 5)


def evaluated(run: str) -> dict[str, dict[str, Any]]:
    return {row["slide_id"]: row for row in storage.read_table(f"{run}/predictions.parquet").to_pylist()}


def rows_of(out: str) -> dict[str, dict[str, Any]]:
    return {row["slide_id"]: row for row in read_store_predictions(out)["slides"]}


def score(run: str, store: str, out: str, **settings: Any) -> dict[str, dict[str, Any]]:
    prepare_store_predictions(run, store, out, PredictConfig(**settings))
    predict_parts(out, "cpu")
    return rows_of(out)


def test_one_bag_at_a_time_gives_evaluate_s_numbers_to_the_bit(cohort: Path, tmp_path: Path, small_parts: None) -> None:
    run = str(cohort / "run")
    rows, known = score(run, str(cohort / "store"), str(tmp_path)), evaluated(run)
    assert len(rows) == SLIDES
    test = [slide_id for slide_id, row in known.items() if row["split"] == "test"]
    assert len(test) >= 3
    assert {name: rows[name]["probability"] for name in known} == {name: known[name]["probability"] for name in known}
    metrics = storage.read_json(f"{run}/metrics.json")
    for row in rows.values():
        odds = row["probability"] / (1 - row["probability"])
        scaled = odds ** (1 / metrics["temperature"])
        assert row["calibrated"] == pytest.approx(scaled / (1 + scaled))
        assert row["called"] == str(int(row["probability"] >= metrics["threshold"]))
        assert (row["status"], row["patches"], row["spread"], row["reason"]) == ("ok", 6, None, None)


def test_bags_that_evaluate_packs_differ_by_rounding_only(cohort: Path, tmp_path: Path) -> None:
    run = train(
        PatchStore(str(cohort / "store")), str(tmp_path / "run"), TRAIN.model_copy(update={"activation_mb": None})
    )
    evaluate(run, baselines=False, attention_formats=())
    rows, known = score(run, str(cohort / "store"), str(tmp_path / "out")), evaluated(run)
    got, expected = ([of[name]["probability"] for name in known] for of in (rows, known))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_it_is_one_parquet_data_set_in_the_order_of_the_manifest(
    cohort: Path, tmp_path: Path, small_parts: None
) -> None:
    score(str(cohort / "run"), str(cohort / "store"), str(tmp_path))
    files = sorted((tmp_path / "predictions").iterdir())
    assert [file.name[:12] for file in files] == ["part-000000-", "part-000001-", "part-000002-"]
    table = pq.read_table(tmp_path / "predictions")
    assert table["slide_id"].to_pylist() == [f"s{k:02d}" for k in range(SLIDES)]
    assert table.schema.names == [
        "slide_id", "patient_id", "status", "called", "probability", "calibrated", "spread", "patches", "reason",
    ]  # fmt: skip
    summary = storage.read_json(str(tmp_path / "summary.json"))
    assert (summary["slides_ok"], summary["slides_quarantined"], summary["same_encoder"]) == (SLIDES, 0, False)
    assert summary["store"].startswith("../")
    assert not (tmp_path / "attention").exists()


def stop_after(parts: int, done: list[str]) -> Callable[..., Iterator[int]]:
    """A fan-out that is killed after so many parts."""

    def fan_out(function: Callable[[PartTask], int], tasks: Iterable[PartTask]) -> Iterator[int]:
        for task in tasks:
            if len(done) == parts:
                raise KeyboardInterrupt
            done.append(task.part.file)
            yield function(task)

    return fan_out


def test_what_was_scored_before_a_kill_is_not_scored_again(cohort: Path, tmp_path: Path, small_parts: None) -> None:
    run, store = str(cohort / "run"), str(cohort / "store")
    score(run, store, str(tmp_path / "whole"))
    out, before, after = str(tmp_path / "out"), [], []
    prepare_store_predictions(run, store, out, PredictConfig())
    with pytest.raises(KeyboardInterrupt):
        predict_parts(out, "cpu", stop_after(2, before))
    assert len(before) == 2
    with pytest.raises(InputError, match=r"got none that are finished \(summary.json is missing\)"):
        read_store_predictions(out)
    predict_parts(out, "cpu", stop_after(3, after))
    assert len(after) == 1
    names = set(storage.names(f"{out}/predictions"))
    assert names == {*before, *after}
    for name in (*(f"predictions/{name}" for name in names), "summary.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    predict_parts(out, "cpu", stop_after(0, []))


def test_the_run_is_read_once_for_the_folder_and_once_for_all_its_parts(
    cohort: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    spec = Run.spec
    monkeypatch.setattr(Run, "spec", lambda run: reads.append(run.uri) or spec(run))
    out = str(tmp_path / "out")
    prepare_store_predictions(str(cohort / "run"), str(cohort / "store"), out, PredictConfig())
    assert len(reads) == 1
    predict_parts(out, "cpu")
    assert len(reads) == 2
    assert len(storage.names(f"{out}/predictions")) == 3


def test_a_run_that_is_evaluated_meanwhile_calls_classes_then(cohort: Path, tmp_path: Path) -> None:
    store = PatchStore(str(cohort / "store"))
    run, out = train(store, str(tmp_path / "run")), str(tmp_path / "out")
    assert {row["called"] for row in score(run, store.uri, out).values()} == {None}
    evaluate(run, baselines=False, attention_formats=())
    assert {row["called"] for row in score(run, store.uri, out).values()} <= {"0", "1"}


def test_parts_of_slides_that_changed_are_scored_anew(cohort: Path, tmp_path: Path, small_parts: None) -> None:
    shutil.copytree(cohort / "store", tmp_path / "store")
    store, run, out = PatchStore(str(tmp_path / "store")), str(cohort / "run"), str(tmp_path / "out")
    before = score(run, store.uri, out)
    slide = store.slide("s07")
    slide.write_features(
        "mean_rgb", np.full((6, 3), 0.5, np.float16), {"encoder": "mean_rgb", "weights_digest": "0" * 64}
    )
    done: list[str] = []
    predict_parts(out, "cpu", stop_after(3, done))
    assert [name[:11] for name in done] == ["part-000001"]
    after = rows_of(out)
    assert len(storage.names(f"{out}/predictions")) == 3
    assert {name for name in after if after[name] != before[name]} == {"s07"}


def test_slides_that_the_store_lacks_or_has_in_quarantine_are_told(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort / "store", tmp_path / "store")
    store = PatchStore(str(tmp_path / "store"))
    manifest = store.manifest()
    absent = Slide("s99", "s99.tiff", 0, "p99", "", None, None, None)
    store.write_manifest(replace(manifest, slides=(*manifest.slides, absent)))
    store.quarantine(SlideRecord("s03"), "no tissue")
    store.rebuild_catalogue()
    predictions = mc.predict(str(cohort / "run"), store=store)
    assert predictions.quarantined["s03"] == "no tissue"
    assert predictions.quarantined["s99"].startswith("the store has no such slide")
    assert predictions.ok == [f"s{k:02d}" for k in range(SLIDES) if k != 3]
    for name in predictions.ok:
        assert predictions[name].probability == pytest.approx(evaluated(str(cohort / "run"))[name]["probability"])


def test_attention_is_written_on_request_and_is_evaluate_s(cohort: Path, tmp_path: Path, small_parts: None) -> None:
    run, test = str(cohort / "run"), [n for n, row in evaluated(str(cohort / "run")).items() if row["split"] == "test"]
    predictions = mc.predict(run, out=tmp_path, store=cohort / "store", attention_formats=["parquet", "zarr"])
    assert len(storage.names(str(tmp_path / "attention"))) == 2 * SLIDES
    for name in test:
        known = storage.read_table(f"{run}/attention/{name}.parquet")
        np.testing.assert_array_equal(predictions[name].attention.weights, known["weight"].to_numpy())
        assert set(known.column_names) <= {*predictions[name].attention.table.column_names, "leave_one_out"}


def test_a_command_that_stops_before_it_removes_parts_is_not_finished(
    cohort: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cohort / "store", tmp_path / "store")
    run, store, out = str(cohort / "run"), PatchStore(str(tmp_path / "store")), str(tmp_path / "out")
    score(run, store.uri, out)
    manifest = store.manifest()
    # the first two parts are as before, the third is none
    store.write_manifest(replace(manifest, slides=manifest.slides[:10]))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_all", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict_parts(out, "cpu")
    with pytest.raises(InputError, match="none that are finished"):
        rows_of(out)
    predict_parts(out, "cpu")
    assert len(rows_of(out)) == 10


def stopped(_: Iterable[str]) -> None:
    raise KeyboardInterrupt


def test_an_evaluation_between_two_predictions_of_one_process_counts(cohort: Path, tmp_path: Path) -> None:
    store, out = str(cohort / "store"), str(tmp_path / "out")
    run = train(PatchStore(store), str(tmp_path / "run"))
    assert {row["called"] for row in score(run, store, out).values()} == {None}
    evaluate(run, baselines=False, attention_formats=())
    threshold = storage.read_json(f"{run}/metrics.json")["threshold"]
    for row in score(run, store, out).values():
        assert row["called"] == str(int(row["probability"] >= threshold))
        assert row["calibrated"] is not None


def test_attention_of_a_slide_that_is_quarantined_later_is_removed(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort / "store", tmp_path / "store")
    store, out = PatchStore(str(tmp_path / "store")), str(tmp_path / "out")
    score(str(cohort / "run"), store.uri, out, attention_formats=("parquet", "zarr"))
    store.quarantine(SlideRecord("s03"), "no tissue")
    rows = score(str(cohort / "run"), store.uri, out, attention_formats=("parquet", "zarr"))
    assert rows["s03"]["status"] == "quarantined"
    names = storage.names(f"{out}/attention")
    assert len(names) == 2 * (SLIDES - 1)
    assert not [name for name in names if name.startswith("s03")]


def test_classes_may_be_named_like_columns() -> None:
    spec = SimpleNamespace(classes=("low probability", "mid", "high"), folds=0)
    scorer: Any = SimpleNamespace(spec=spec, rule=None, predicted_class=lambda _: None)
    columns = PREDICTION_ROWS["classification"].columns(scorer, None)
    assert "calibrated_low probability" in columns


def test_a_bag_of_a_patient_has_one_prediction_of_all_usable_slides(tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"), SLIDES)
    manifest = store.manifest()
    slides = tuple(replace(slide, patient_id=f"p{k // 4}{k % 2}") for k, slide in enumerate(manifest.slides))
    store.write_manifest(replace(manifest, slides=slides))
    write_features(store)
    run = train(store, str(tmp_path / "run"), TRAIN.model_copy(update={"bag": "patient"}))
    evaluate(run, baselines=False, attention_formats=())
    rows = score(run, store.uri, str(tmp_path / "out"))
    known = evaluated(run)
    for bag, row in known.items():
        assert {rows[name]["probability"] for name in bag.split(";")} == {row["probability"]}


def test_folds_give_the_mean_and_spread_of_their_models(cohort: Path, tmp_path: Path) -> None:
    store = PatchStore(str(cohort / "store"))
    runs = [
        train(store, str(tmp_path / f"r{seed}"), TRAIN.model_copy(update={"seed": seed, "learning_rate": 0.05}))
        for seed in range(2)
    ]
    rows = score(as_folds(runs, str(tmp_path / "folds")), store.uri, str(tmp_path / "out"))
    single = [score(run, store.uri, str(tmp_path / f"o{k}")) for k, run in enumerate(runs)]
    for name, row in rows.items():
        values = [of_run[name]["probability"] for of_run in single]
        assert row["probability"] == pytest.approx(np.mean(values), abs=1e-12)
        assert row["spread"] == pytest.approx(np.std(values), abs=1e-12)
        assert row["called"] is None


def test_survival_gives_risks(tmp_path: Path) -> None:
    store = survival_store(str(tmp_path / "store"), patients=24)
    run = train_survival(store, str(tmp_path / "run"))
    evaluate(run, baselines=False, attention_formats=())
    predictions = mc.predict(run, store=store)
    known = evaluated(run)
    assert {name: predictions[name].risk for name in known} == pytest.approx(
        {name: row["risk"] for name, row in known.items()}, abs=1e-6
    )


def test_a_run_on_patches_scores_the_patches_of_a_store(tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"), 8)
    run = train(store, str(tmp_path / "run"), TrainConfig(encoder="conv", hidden=4, attention_hidden=2, epochs=1))
    evaluate(run, baselines=False, attention_formats=())
    rows = score(run, store.uri, str(tmp_path / "out"))
    for name, row in evaluated(run).items():
        assert rows[name]["probability"] == pytest.approx(row["probability"], abs=1e-6)
    for settings in ({"features": "mean_rgb"}, {"same_encoder": True}):
        with pytest.raises(InputError, match=f"{next(iter(settings))}: expected none for a run on patches"):
            score(run, store.uri, str(tmp_path / "other"), **settings)


# --- what made the features


def test_patches_are_scored_only_where_they_are_known_to_be_of_the_run_s_kind() -> None:
    ingested, imported_ones = (
        InstanceOrigin(ingestion=each, imports=(), encoder=None) for each in ((IngestConfig(),), ())
    )
    check = partial(check_ingestion, "store", of_patches=True)
    check(ingested, ingested)
    check(imported_ones, imported_ones)
    with pytest.raises(StoreError, match="expected patches that were ingested as those of the run, got imported"):
        check(ingested, imported_ones)
    with pytest.raises(StoreError, match="expected patches that were imported as those of the run, got ingested"):
        check(imported_ones, ingested)
    check_ingestion("store", ingested, imported_ones, of_patches=False)


def write_table(folder: Path, seed: int, slides: int = 8) -> str:
    """Features of four instances a slide, in one Parquet file."""
    generator = np.random.default_rng(seed)
    rows = [
        {"slide_id": f"s{k}", "label": k % 2, "features": (generator.normal(size=5) + k % 2).tolist()}
        for k in range(slides)
        for _ in range(4)
    ]
    folder.mkdir(exist_ok=True)
    storage.write_table(str(folder / f"{seed}.parquet"), pa.Table.from_pylist(rows))
    return str(folder / f"{seed}.parquet")


def imported(folder: Path, name: str, seed: int, **settings: Any) -> PatchStore:
    store = PatchStore(str(folder / name))
    import_source(write_table(folder / "files", seed), store.uri, ImportConfig(format="parquet", **settings))
    return store


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of imports with an encoder's id, another and none, and runs on two of them."""
    folder = tmp_path_factory.mktemp("imports")
    config = TRAIN.model_copy(update={"features": "imported"})
    train(imported(folder, "named", 1, encoder_id="uni2-h at 0.5 um/px"), str(folder / "run"), config)
    train(imported(folder, "unnamed", 1), str(folder / "run-unnamed"), config)
    imported(folder, "new", 2, encoder_id="uni2-h at 0.5 um/px")
    imported(folder, "other", 2, encoder_id="virchow2")
    imported(folder, "new-unnamed", 2)
    return folder


def test_the_id_of_an_encoder_is_kept_with_the_features_and_the_run(imports: Path) -> None:
    attrs = PatchStore(str(imports / "new")).slide("s1").feature_attrs("imported")
    assert attrs["encoder_id"] == "uni2-h at 0.5 um/px"
    assert Run(str(imports / "run")).spec().origin.encoder_id == "uni2-h at 0.5 um/px"
    assert "encoder_id" not in PatchStore(str(imports / "unnamed")).slide("s1").record.parameters
    assert Run(str(imports / "run-unnamed")).spec().origin.encoder_id is None


def test_imported_features_of_the_same_id_are_scored(imports: Path, tmp_path: Path) -> None:
    rows = score(str(imports / "run"), str(imports / "new"), str(tmp_path), same_encoder=True)
    assert len(rows) == 8
    # it is known without the user's word
    assert storage.read_json(str(tmp_path / "config.json"))["same_encoder"] is False


@pytest.mark.parametrize(
    ("run", "store", "line"),
    [
        ("run", "other", "encoder_id 'uni2-h at 0.5 um/px', got 'virchow2'; allowed: the same text"),
        ("run", "new-unnamed", "encoder_id 'uni2-h at 0.5 um/px', got an import without encoder_id, so that it cannot"),
        ("run-unnamed", "new", "an import without encoder_id, got encoder_id 'uni2-h at 0.5 um/px', so that it cannot"),
        ("run-unnamed", "new-unnamed", "an import without encoder_id, got an import without encoder_id"),
    ],
)
def test_features_that_are_not_known_to_be_of_the_run_s_encoder_are_refused(
    imports: Path, tmp_path: Path, run: str, store: str, line: str
) -> None:
    with pytest.raises(StoreError, match=line) as raised:
        prepare_store_predictions(str(imports / run), str(imports / store), str(tmp_path / "out"), PredictConfig())
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_user_s_word_is_recorded(imports: Path, tmp_path: Path) -> None:
    run, store, out = str(imports / "run-unnamed"), str(imports / "new-unnamed"), str(tmp_path / "out")
    score(run, store, out, same_encoder=True)
    assert storage.read_json(f"{out}/config.json")["same_encoder"] is True
    assert storage.read_json(f"{out}/summary.json")["same_encoder"] is True
    (part,) = storage.names(f"{out}/predictions")
    assert pq.read_schema(f"{out}/predictions/{part}").metadata[b"same_encoder"] == b"true"
    with pytest.raises(StoreError, match=r"so that it cannot be told; allowed: .* or --same-encoder"):
        prepare_store_predictions(run, store, out, PredictConfig())


def test_an_id_that_is_given_later_is_added_to_the_features(imports: Path, tmp_path: Path) -> None:
    store = imported(tmp_path, "store", 2)
    before = store.slide("s1").feature_attrs("imported")
    imported(tmp_path, "store", 2, encoder_id="uni2-h at 0.5 um/px")
    after = store.slide("s1").feature_attrs("imported")
    assert (before["digest"], before.get("encoder_id")) == (after["digest"], None)
    assert len(score(str(imports / "run"), store.uri, str(tmp_path / "out"))) == 8


def test_an_id_that_is_given_after_training_is_taken_by_the_run_that_is_trained_again(
    imports: Path, tmp_path: Path
) -> None:
    config, text = TRAIN.model_copy(update={"features": "imported"}), "uni2-h at 0.5 um/px"
    store, run = imported(tmp_path, "store", 1), str(tmp_path / "run")
    models = storage.read_bytes(Run(train(store, run, config)).model_uri)
    imported(tmp_path, "store", 1, encoder_id=text)
    assert Run(run).spec().origin.encoder_id is None
    train(store, run, config)
    assert Run(run).spec().origin.encoder_id == text
    assert storage.read_bytes(Run(run).model_uri) == models
    assert len(score(run, str(imports / "new"), str(tmp_path / "out"))) == 8


RECORD = EncoderRecord(encoder="uni2-h", weights_digest="1" * 64, transform="224 px")
OTHER = RECORD.model_copy(update={"transform": "256 px"})


def origin(encoder: EncoderRecord | None = None, encoder_id: str | None = None) -> InstanceOrigin:
    return InstanceOrigin(ingestion=(), imports=(), encoder=encoder, encoder_id=encoder_id)


@pytest.mark.parametrize("vouched", [False, True])
@pytest.mark.parametrize(
    ("cohort", "store", "expected"),
    [
        (origin(RECORD), origin(RECORD.model_copy(update={"encoder": "hf:/copy"})), True),
        (origin(RECORD), origin(OTHER), "another transform"),
        (origin(encoder_id="uni"), origin(encoder_id="uni"), True),
        (origin(encoder_id="uni"), origin(encoder_id="uni2-h"), "got 'uni2-h'"),
        (origin(RECORD), origin(encoder_id="uni2-h"), None),
        (origin(encoder_id="uni2-h"), origin(RECORD), None),
        (origin(), origin(RECORD), None),
        (origin(), origin(), None),
    ],
)
def test_the_user_may_vouch_only_where_nothing_says_otherwise(
    cohort: InstanceOrigin, store: InstanceOrigin, expected: bool | str | None, vouched: bool
) -> None:
    if expected is True:
        assert is_same_encoder("s", cohort, store, vouched=vouched)
    elif expected is None and vouched:
        assert not is_same_encoder("s", cohort, store, vouched=True)
    else:
        with pytest.raises(StoreError, match=expected or "so that it cannot be told"):
            is_same_encoder("s", cohort, store, vouched=vouched)


def test_slides_cut_otherwise_are_refused(cohort: Path, tmp_path: Path) -> None:
    """A model of patches at 0.5 um/px says nothing of those at 1."""
    run = Run(str(cohort / "run"))
    assert run.spec().origin.ingestion == ()
    settings = IngestConfig(mpp=1.0).model_dump()
    stores = [write_store(str(tmp_path / f"store{k}"), 8) for k in range(2)]
    for store, changed in zip(stores, ({}, {"mpp": 0.5, "max_unreadable": 3}), strict=True):
        for slide_id in store.slide_ids():
            record = replace(store.record(slide_id), parameters=settings | changed)
            write_group(store.group_uri(slide_id), record.to_complete_attrs())
        write_features(store)
    one, half = stores
    trained = train(one, str(tmp_path / "run"))
    assert len(score(trained, one.uri, str(tmp_path / "a"))) == 8
    with pytest.raises(StoreError, match=r"expected slides ingested as those of the run, got another mpp \(mpp 0.5\)"):
        prepare_store_predictions(trained, half.uri, str(tmp_path / "b"), PredictConfig())


# --- what is refused


def test_a_folder_holds_predictions_of_one_kind_and_one_store(cohort: Path, imports: Path, tmp_path: Path) -> None:
    out, run = str(tmp_path / "out"), str(cohort / "run")
    score(run, str(cohort / "store"), out)
    shutil.copytree(cohort / "store", tmp_path / "store")
    with pytest.raises(
        InputError, match=r"expected the settings that it was made with, got others \(store was '.*', now"
    ):
        prepare_store_predictions(run, str(tmp_path / "store"), out, PredictConfig())
    with pytest.raises(InputError, match=r"attention_formats was \[\], now \['png'\]"):
        prepare_store_predictions(run, str(cohort / "store"), out, PredictConfig(attention_formats=("png",)))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"store": "s", "default_mpp": 0.5}, "default_mpp: expected none for a store, got 0.5"),
        ({"slides": "a.svs", "same_encoder": True}, "same_encoder: expected none for slides, got True"),
        ({"slides": "a.svs", "features": "uni"}, "features: expected none for slides, got 'uni'; allowed: for a store"),
        ({"slides": "a.svs", "workers": 2}, "workers: expected none for slides, got 2; allowed: for a store"),
        ({"slides": "a.svs", "ray_address": "rayjob"}, "ray_address: expected none for slides, got 'rayjob'; allowed"),
        ({"slides": "a.svs", "store": "s"}, "expected slides, a manifest or a store, got 1 slides, manifest None and"),
        ({"store": "s", "features": "../x"}, "features: expected"),
    ],
)
def test_settings_of_the_other_kind_are_one_line(cohort: Path, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        mc.predict(cohort / "run", **settings)


def test_features_of_another_name_or_width(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort / "store", tmp_path / "store")
    store, run = PatchStore(str(tmp_path / "store")), str(cohort / "run")
    write_features(store, "again")
    known = evaluated(run)
    rows = score(run, store.uri, str(tmp_path / "out"), features="again")
    assert {name: rows[name]["probability"] for name in known} == {name: known[name]["probability"] for name in known}
    with pytest.raises(StoreError, match="12 of 12 slides have no features/none"):
        prepare_store_predictions(run, store.uri, str(tmp_path / "no"), PredictConfig(features="none"))
    attrs = {"encoder": "mean_rgb", "weights_digest": "0" * 64}
    for slide_id in store.slide_ids():
        store.slide(slide_id).write_features("wide", np.zeros((6, 4), np.float16), attrs)
    with pytest.raises(InputError, match="expected 3 features, as the model was trained on, got 4"):
        prepare_store_predictions(run, store.uri, str(tmp_path / "wide"), PredictConfig(features="wide"))
    assert not (tmp_path / "wide").exists()


def test_a_store_without_slides_is_refused(cohort: Path, tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"), 2)
    for slide_id in store.slide_ids():
        store.quarantine(SlideRecord(slide_id), "no tissue")
    with pytest.raises(StoreError, match="expected slides to score, got none of 2 that is ok"):
        prepare_store_predictions(str(cohort / "run"), store.uri, str(tmp_path / "out"), PredictConfig())


def test_a_part_is_named_by_its_slides_instances_and_settings() -> None:
    slides = [StoreSlide(f"s{k}", f"p{k // 2}", "bad" if k == 3 else None) for k in range(6)]
    instances = {slide.slide_id: slide.slide_id * 2 for slide in slides if slide.reason is None}
    (part,) = divide(slides, instances, ["a"], by_patient=True)
    assert [[slide.slide_id for slide in bag] for bag in part.bags] == [["s0", "s1"], ["s2", "s3"], ["s4", "s5"]]
    assert part.usable == ["s0", "s1", "s2", "s4", "s5"]
    others = [
        divide(slides, instances | {"s1": "other"}, ["a"], by_patient=True),
        divide(slides, instances, ["b"], by_patient=True),
        divide([*slides[:3], slides[3]._replace(reason="worse"), *slides[4:]], instances, ["a"], by_patient=True),
        divide(slides, instances, ["a"], by_patient=False),
    ]
    assert len({part.file, *(other.file for (other,) in others)}) == 5
    assert divide(slides, instances, ["a"], by_patient=True)[0].file == part.file
