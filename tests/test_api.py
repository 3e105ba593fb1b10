"""The verbs as a notebook calls them: settings as keywords, objects in and out."""

import inspect
import math
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import milcore as mc
from milcore import api
from milcore.cli.main import app
from milcore.config import TrainConfig
from milcore.errors import InputError
from milcore.runtime import html
from milcore.slides.write_pyramid import write_pyramid
from tests.cohorts import write_features, write_store

SLIDES = 30
VERBS = (mc.ingest, mc.import_cohort, mc.encode, mc.train, mc.tune, mc.evaluate, mc.predict, mc.fit)


def write_slide(path: Path, seed: int) -> None:
    """Stained noise of 1024 x 512 px, paler where the seed is odd; a PNG tells no um/px."""
    pixels = np.full((512, 1024, 3), 244, np.uint8)
    stain = np.array((200, 110 + 30 * (seed % 2), 170))
    pixels[:, :768] = np.clip(np.random.default_rng(seed).normal(stain, 25, (512, 768, 3)), 0, 255)
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        write_pyramid(path, pixels, 0.5, 1, quality=90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides S00 to S29, one of which tells no scale, and a new one."""
    folder = tmp_path_factory.mktemp("lab")
    rows = ["slide_id,uri,label"]
    for k in range(SLIDES):
        file = f"S{k:02d}.{'png' if k == 17 else 'tiff'}"
        write_slide(folder / file, k)
        rows.append(f"S{k:02d},{file},{'tumour' if k % 2 else 'normal'}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_slide(folder / "new.tiff", 101)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> mc.Evaluation:
    """The example of the public interface, with folders, a small encoder and synthetic slides in it."""
    lab = f"{folder}/lab"

    report = mc.ingest(folder / "cohort.csv", f"{lab}/store", mpp=0.5)
    assert report.quarantined == {"S17": report.store.quarantined()["S17"]}
    assert "um/px" in report.quarantined["S17"]
    store = report.store
    mc.encode(store, "efficientnet_lite0")
    run = mc.train(store, f"{lab}/run", features="efficientnet_lite0", pooling="gated_attention", folds=5)

    result = mc.evaluate(run)
    auroc = result.metrics["auroc"]
    assert 0.0 <= auroc.low <= auroc.value <= auroc.high <= 1.0
    assert result.report == f"{lab}/run/report.html"
    assert Path(result.report).read_text().startswith("<!doctype html>")
    return result


def test_each_slide_has_its_label_prediction_and_attention(result: mc.Evaluation) -> None:
    assert result.slides
    for slide_id, slide in result.slides.items():
        assert slide.label == ("tumour" if int(slide_id[1:]) % 2 else "normal")
        assert sum(slide.probabilities.values()) == pytest.approx(1.0)
        assert slide.attention.weights.sum() == pytest.approx(1.0)
        assert slide.attention.coords is not None
        assert slide.attention.coords.shape == (len(slide.attention), 2)
        assert np.asarray(slide.attention.overlay()).std() > 0


def test_the_metrics_are_those_of_the_file_and_of_the_report(result: mc.Evaluation) -> None:
    content = result.as_dict()
    for estimates, key in ((result.metrics, "score_intervals"), (result.resampled, "intervals")):
        assert len(content[key]) > 5
        for name, ends in content[key].items():
            assert (estimates[name].value, [estimates[name].low, estimates[name].high]) == (content[name], ends)
    assert "threshold" not in result.metrics
    assert list(result.comparison) == [row["name"] for row in content["comparison"]]
    out_of_fold = result.run.out_of_fold()
    assert out_of_fold is not None
    assert out_of_fold.folds == len(out_of_fold.fold_metric) == 5


def test_a_new_slide_is_scored_and_nothing_is_left_on_the_disk(
    result: mc.Evaluation, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(folder.rglob("*"))
    predictions = mc.predict(result.run, [folder / "new.tiff"])
    assert list(tmp_path.iterdir()) == []
    assert sorted(folder.rglob("*")) == before
    assert 0.0 < predictions["new"].probability < 1.0
    assert predictions["new"].attention.weights.sum() == pytest.approx(1.0)
    assert predictions["new"].attention.overlay().size[0] > 0
    kept = mc.predict(result, folder / "new.tiff", tmp_path / "out")
    assert kept["new"].probability == predictions["new"].probability
    assert (tmp_path / "out" / "attention" / "new.ome.tiff").exists()
    missing = mc.predict(result.run, folder / "S17.png")
    assert not missing
    with pytest.raises(KeyError, match=r"S17: quarantined: .*um/px"):
        missing["S17"]


def test_every_verb_takes_a_uri_a_path_a_store_a_report_or_a_run(result: mc.Evaluation, folder: Path) -> None:
    store_uri, run = f"{folder}/lab/store", result.run
    report = mc.ingest(folder / "cohort.csv", run)
    assert (report.store.uri, report.skipped) == (store_uri, SLIDES)
    sources = (store_uri, Path(store_uri), report.store, report, run)
    encoded = [mc.encode(source, "efficientnet_lite0") for source in sources]
    assert len({(each.name, tuple(sorted(each.slides)), each.patches) for each in encoded}) == 1
    trained = [mc.train(source, run, folds=5) for source in (*sources, encoded[0])]
    assert {each.uri for each in trained} == {run.uri}
    with pytest.raises(InputError, match=r"store: expected a patch store, got 3; allowed: its URI, a PatchStore"):
        mc.encode(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"run: expected a run, got None; allowed: its URI, a Run"):
        mc.evaluate(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"sweep: expected a sweep, got 1; allowed: its URI or a Sweep"):
        mc.train(store_uri, run, sweep=1)  # type: ignore[arg-type]


def test_every_verb_works_twice_once_every_module_is_imported(folder: Path, tmp_path: Path) -> None:
    """A module of a verb's name, once imported, would stand in the verb's place."""
    for module in pkgutil.walk_packages(mc.__path__, "milcore."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    bags = tmp_path / "bags.npz"
    generator = np.random.default_rng(0)
    np.savez(bags, X=generator.normal(size=(40, 4)), bag=np.repeat(np.arange(20), 2), y=np.arange(20) % 2)
    rows = (folder / "cohort.csv").read_text().splitlines()[:13]
    (folder / "few.csv").write_text("\n".join(rows) + "\n")
    small = {"hidden": 8, "attention_hidden": 4, "epochs": 2}
    for _ in range(2):
        imported = mc.import_cohort(bags, tmp_path / "imported", format="bags-npz")
        report = mc.ingest(folder / "few.csv", tmp_path / "store")
        features = mc.encode(report)
        sweep = mc.tune(report, tmp_path / "sweep", trials=1, poolings=["mean"], hidden=8, epochs=2)
        run = mc.train(report, tmp_path / "run", sweep=sweep)
        evaluation = mc.evaluate(run, baselines=False, attention_formats=["parquet"])
        predictions = mc.predict(run, folder / "new.tiff", tmp_path / "predictions")
        model = mc.fit(mc.Bags.from_arrays(generator.normal(size=(6, 3, 4)), [0, 1] * 3), **small)
    assert (len(imported.ok), imported.skipped, imported.features) == (20, 20, "imported")
    assert (len(report.ok), report.skipped, len(features.slides)) == (12, 12, 12)
    assert run.spec().train == sweep.require_best()
    assert run.spec().train.hidden == 8
    assert not evaluation.comparison.keys() - {"mean pooling, embedding level"}
    assert predictions.ok == ["new"]
    assert isinstance(model, mc.MILModel)


@pytest.mark.parametrize(
    ("keyword", "flag", "value"), [("hidden", "--hidden", 0), ("dropout", "--dropout", 2.0), ("seed", "--seed", -1)]
)
def test_a_value_out_of_range_is_told_in_the_words_of_the_command_line(keyword: str, flag: str, value: float) -> None:
    shown = CliRunner().invoke(app, ["train", "store", "run", flag, str(value)])
    with pytest.raises(InputError) as raised:
        mc.train("store", "run", **{keyword: value})  # type: ignore[arg-type]
    assert str(raised.value) == str(shown.exception)
    assert str(raised.value).startswith(f"{keyword}: expected")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: mc.train("s", "r", hiden=3),
            r"hiden: expected a setting, got 'hiden'; allowed: .*; did you mean hidden",
        ),
        (lambda: mc.encode("s", encodr="uni"), r"encodr: expected a setting, got 'encodr'; .*; did you mean encoder"),
        (lambda: mc.encode("s", "unii"), "encoder: expected an encoder, got 'unii'; allowed"),
        (lambda: mc.train("s", "r", config={"hidden": 3}), r"config: expected a TrainConfig, got \{'hidden': 3\}"),
        (lambda: mc.tune("s", "r", folds=3), "folds: expected none in tune, got 3; objective_folds scores trials"),
        (lambda: mc.tune("s", "r", learning_rate=3), "learning_rate: expected none in tune, got 3; drawn from"),
        (
            lambda: mc.evaluate("r", attention_formats=["jpg"]),
            r"attention_formats\.0: expected 'parquet', 'png', .*, got 'jpg'",
        ),
        (lambda: mc.predict("r"), "predict: expected slides, a manifest or a store, got 0 slides"),
    ],
)
def test_an_unknown_or_bad_keyword_is_one_line(call: Callable[[], object], line: str) -> None:
    with pytest.raises(InputError, match=line) as raised:
        call()
    assert "\n" not in raised.value.line


def test_a_config_and_keywords_make_one_and_keywords_count(tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"))
    write_features(store)
    base = TrainConfig(features="mean_rgb", hidden=4, attention_hidden=2, epochs=9)
    run = mc.train(store, tmp_path / "run", config=base, epochs=1, split_seed=3)
    assert run.spec().train == base.model_copy(update={"epochs": 1})
    without = mc.train(store, tmp_path / "patches", encoder="conv", hidden=4, attention_hidden=2, epochs=1)
    assert without.spec().train.features is None


def test_a_sweep_keeps_the_training_settings_of_its_config(tmp_path: Path) -> None:
    chosen: dict[str, object] = {}

    @api.with_settings(api.NOT_IN_SWEEP, train=TrainConfig, config=mc.TuneConfig)
    def tune(*, config: mc.TuneConfig) -> None:
        chosen["config"] = config

    tune(
        config=mc.TuneConfig(trials=3, train=TrainConfig(hidden=7, epochs=3)), epochs=5, train=TrainConfig(dropout=0.1)
    )
    assert chosen["config"] == mc.TuneConfig(trials=3, train=TrainConfig(hidden=7, epochs=5, dropout=0.1))
    tune(poolings=("noisy_or",), level="instance")
    assert chosen["config"] == mc.TuneConfig(poolings=("noisy_or",), train=TrainConfig(level="instance"))


def test_a_wrong_value_of_a_config_is_one_line() -> None:
    with pytest.raises(mc.MILError, match=r"^hiden: expected a setting, got 'hiden'; allowed: .*hidden"):
        mc.TrainConfig(hiden=3)  # type: ignore[call-arg]
    with pytest.raises(mc.MILError, match=r"^train\.hidden: expected greater than 0, got -1$"):
        mc.TuneConfig(train={"hidden": -1})  # type: ignore[arg-type]


def test_a_sweep_says_which_settings_of_its_training_it_does_not_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(mc.MILError):
        mc.tune(tmp_path / "none", tmp_path / "sweep", train=TrainConfig(pooling="max"))
    assert "pooling 'max' of train is not used: " in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in dir(mc) if inspect.isclass(getattr(mc, name))])
def test_nothing_that_an_object_gives_is_a_dict_of_anything(name: str) -> None:
    for member, value in vars(getattr(mc, name)).items():
        function = value.fget if isinstance(value, property) else getattr(value, "func", value)
        if inspect.isfunction(function) and not member.startswith("_"):
            assert "dict[str, typing.Any]" not in str(inspect.signature(function)), member


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_help_has_a_line_for_every_argument_and_setting(verb: Callable[..., object]) -> None:
    text = inspect.getdoc(verb) or ""
    own = [name for name in inspect.signature(verb).parameters if name != "settings"]
    for name in (*own, *getattr(verb, "__settings__", {})):
        assert f"\n    {name}: " in text, name
    assert max(map(len, text.splitlines())) <= 120
    assert len(str(inspect.signature(verb))) < 500


def test_a_script_that_does_not_guard_its_work_ingests_in_processes(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import milcore as mc\nprint('begun')\n"
        f"print(mc.ingest({str(folder / 'cohort.csv')!r}, {str(tmp_path / 'store')!r}, workers=2))\n"
    )
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=os.environ)
    assert shown.stdout.splitlines() == [
        "begun", f"IngestReport({tmp_path}/store: 29 slides ok, 1 quarantined, 174 patches)"
    ]  # fmt: skip


def test_objects_are_rich_in_a_notebook_and_short_in_a_terminal(result: mc.Evaluation, folder: Path) -> None:
    slide = next(iter(result.slides.values()))
    report = mc.ingest(folder / "cohort.csv", result.run.store)
    predictions = mc.predict(result.run, folder / "new.tiff")
    for each in (result, result.run, result.run.store, report, slide, slide.attention, predictions, predictions["new"]):
        assert each._repr_html_().count("<") > 4
        assert "\n" not in repr(each)
        assert len(repr(each)) < 400
    assert result.run.store._repr_html_().count("data:image/jpeg") == 24
    assert "AUROC" in result._repr_html_()
    assert ">nan<" not in result._repr_html_()
    assert "S17" in report._repr_html_()
    assert slide._repr_html_().count("data:image/png") == 1


def test_texts_out_of_data_are_escaped_in_a_notebook(tmp_path: Path) -> None:
    reasons = {"a": "<script>alert(1)</script>"}
    report = mc.IngestReport(write_store(str(tmp_path / "store")), ["b"], reasons, 3, 0)
    assert "<script>" not in report._repr_html_()
    assert "&lt;script&gt;" in report._repr_html_()


def test_an_evaluation_is_refused_before_there_is_one(tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"))
    write_features(store)
    run = mc.train(store, tmp_path / "run", features="mean_rgb", hidden=4, attention_hidden=2, epochs=1)
    with pytest.raises(InputError, match=r"expected an evaluated run, got no metrics.json; run milcore evaluate first"):
        mc.Evaluation(run)
    evaluation = mc.evaluate(run, baselines=False, attention_formats=())
    with pytest.raises(InputError, match=r"attention of slide .*: expected .*parquet, got none; evaluate or predict"):
        next(iter(evaluation.slides.values())).attention.weights  # noqa: B018


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: mc.ingest("m.csv", "s", workers=-1), "workers: expected greater than or equal to 0, got -1"),
        (lambda: mc.ingest("m.csv", "s", workers=1.5), "workers: expected a valid integer"),
        (lambda: mc.ingest(None, "s"), "manifest: expected a path or URI, got None; allowed: text or a Path"),
        (lambda: mc.import_cohort(None, "s", format="stamp", labels=Path("l.csv")), "source: expected a path or URI"),
        (lambda: mc.train("s", ""), "run: expected a path or URI, got ''; allowed: text or a Path, not empty"),
        (lambda: mc.predict("r", "a.svs", ""), "out: expected a path or URI, got ''"),
        (lambda: mc.predict("r", ""), "slides: expected a path or URI, got ''"),
        (lambda: mc.predict("r", 3), "slides: expected paths or URIs, got 3; allowed: one, or several in a list"),
        (lambda: mc.predict("r", "a", annotation_origin="f"), "annotation_origin: expected 'slide' or 'bounds', got"),
        (lambda: mc.predict("r", "a", defaultmpp=3), r"defaultmpp: expected a setting.*; did you mean default_mpp\?"),
        (lambda: mc.synthesise("c", sed=3), r"sed: expected a setting, got 'sed'; allowed: .*; did you mean seed\?"),
        (lambda: mc.train("s", "r", hiden=1, epoch=2), "hiden: expected a setting.*; epoch: expected a setting"),
        (lambda: mc.evaluate("r", allow_program="perhaps"), "allow_program: expected a valid boolean"),
    ],
)  # fmt: skip
def test_an_argument_of_another_kind_is_one_line(call: Callable[[], object], line: str) -> None:
    with pytest.raises(InputError, match=line) as raised:
        call()
    assert "\n" not in raised.value.line


def test_a_gpu_that_is_not_there_is_one_line(result: mc.Evaluation, folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    for call in (
        lambda: mc.evaluate(result.run, use_gpu=True),
        lambda: mc.predict(result.run, folder / "new.tiff", use_gpu=True),
    ):
        with pytest.raises(InputError, match="use_gpu: expected a CUDA device, got none"):
            call()


def test_runs_and_stores_keep_their_place_when_the_working_folder_changes(
    result: mc.Evaluation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = Path(result.run.uri)
    monkeypatch.chdir(place.parent)
    run, store, sweep = mc.Run("run/"), mc.PatchStore(Path("store")), mc.Sweep(Path("sweep"))
    monkeypatch.chdir(tmp_path)
    assert run == result.run
    assert (store, hash(store)) == (result.run.store, hash(result.run.store))
    assert sweep.uri == str(place.parent / "sweep")
    assert mc.Evaluation(place).metrics == result.metrics


def test_a_slide_is_shown_with_the_reason_where_its_picture_was_not_written(tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"))
    write_features(store)
    run = mc.train(store, tmp_path / "run", features="mean_rgb", hidden=4, attention_hidden=2, epochs=1)
    formats = (name for name in ["png"])
    slide = next(iter(mc.evaluate(run, baselines=False, attention_formats=formats).slides.values()))
    assert "data:image/png" in slide._repr_html_()
    Path(f"{run.attention_uri}/{slide.slide_id}.png").unlink()
    again = next(iter(mc.Evaluation(run).slides.values()))
    assert "png, got none" in again._repr_html_()


def test_the_reason_of_a_slide_that_is_absent_has_its_whole_path(result: mc.Evaluation, tmp_path: Path) -> None:
    for out in (None, tmp_path / "out", tmp_path / "out"):
        quarantined = mc.predict(result.run, tmp_path / "absent.tiff", out).quarantined
        assert f"cannot read {tmp_path}/absent.tiff: there is no such file" in quarantined["absent"]


def test_an_estimate_is_a_number_with_an_interval() -> None:
    estimate = mc.Estimate(0.93, 0.88, 0.97)
    assert (repr(estimate), str(estimate)) == ("Estimate(0.930, low=0.880, high=0.970)", "0.930 (0.880 to 0.970)")
    assert (f"{estimate:.1f}", f"{estimate}", float(estimate)) == ("0.9", str(estimate), 0.93)
    assert repr(mc.Estimate(math.nan, reason="one class")) == "Estimate(undefined: one class)"


def test_a_long_table_ends_with_the_number_of_further_rows() -> None:
    shown = html.table(["n"], [(k,) for k in range(130)])
    assert (shown.count("<tr>"), shown.count("and 30 more")) == (101, 1)
