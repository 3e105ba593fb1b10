"""The command line: one object with --json, one clear line and exit code 2 for bad input, 3 for no usable slide."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from milcore.cli.main import app, main
from milcore.cohort.manifest import Manifest, Slide
from milcore.config import POOLING_NAMES, TrainConfig
from milcore.store.store import PatchStore
from tests.cohorts import write_features, write_store

SMALL = ["--features", "mean_rgb", "--epochs", "2", "--batch-size", "4"]


def milcore(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from milcore.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


def last_object(ended: subprocess.CompletedProcess[str]) -> dict[str, object]:
    value = json.loads(ended.stdout.strip().split("\n")[-1])
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("cli") / "store")
    write_features(write_store(uri, slides=16))
    return uri


def test_real_slides_go_from_ingest_to_predict_and_bad_ones_are_named(shared_data: Path, tmp_path: Path) -> None:
    """The real slide stands in as four, positive and negative, so that a model can be trained at all."""
    lines = ["slide_id,uri,label,patient_id,split"]
    for k, split in enumerate(["train", "train", "val", "test"]):
        shutil.copy(shared_data / "slides" / "CMU-1-Small-Region.svs", tmp_path / f"real{k}.svs")
        lines.append(f"real{k},real{k}.svs,{k % 2},p{k},{split}")
    bad = ["no_mpp", "corrupt_tiles", "truncated_half", "wrong_magic", "empty"]
    lines += [f"{name},{shared_data}/slides/{name}.svs,0,{name},train" for name in bad]
    (tmp_path / "manifest.csv").write_text("\n".join([*lines, "gone,gone.svs,0,gone,train", ""]))
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    ended = milcore("ingest", str(tmp_path / "manifest.csv"), store, "--json")
    assert ended.returncode == 0, ended.stderr
    summary = last_object(ended)
    assert sorted(summary["ok"]) == ["real0", "real1", "real2", "real3"]
    assert set(summary["quarantined"]) == {*bad, "gone"}
    assert "no mpp" in summary["quarantined"]["no_mpp"]
    assert milcore("encode", store, "--encoder", "efficientnet_lite0").returncode == 0
    assert milcore("train", store, run, "--epochs", "1").returncode == 0
    new = [str(shared_data / "slides" / name) for name in ("CMU-1-Small-Region.svs", "empty.svs")]
    ended = milcore("predict", run, *new, str(tmp_path / "predictions"), "--json")
    assert ended.returncode == 0, ended.stderr
    assert len(last_object(ended)["ok"]) == len(last_object(ended)["quarantined"]) == 1


def test_no_usable_slide_is_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("slide_id,uri,label\na,gone.svs,0\nb,gone.svs,1\n")
    ended = milcore("ingest", str(tmp_path / "manifest.csv"), str(tmp_path / "store"), "--json")
    assert ended.returncode == 3
    assert set(last_object(ended)["quarantined"]) == {"a", "b"}


def test_train_evaluate_and_info_end_with_an_object(store_uri: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    trained = last_object(milcore("train", store_uri, run, *SMALL, "--pooling", "attention", "--json"))
    assert trained["train"]["pooling"] == "attention"
    evaluated = last_object(milcore("evaluate", run, "--no-baselines", "--json"))
    assert {"auroc", "accuracy", "localisation_auroc", "report"} <= evaluated.keys()
    assert Path(evaluated["report"]).stat().st_size > 10_000
    said = milcore("evaluate", run, "--no-baselines").stdout
    low, high = evaluated["score_intervals"]["accuracy"]
    assert f"accuracy {evaluated['accuracy']:.3f} (95 %: {low:.2f} to {high:.2f}), " in said
    assert last_object(milcore("info", run, "--json"))["finished"] is True
    evaluated = last_object(milcore("evaluate", run, "--no-baselines", "--labels-from", "manifest", "--json"))
    assert evaluated["labels_from"] == "manifest"


def test_a_config_file_is_taken_and_flags_stand_above_it(store_uri: str, tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    file.write_text(TrainConfig(features="mean_rgb", pooling="max", epochs=9).model_dump_json())
    ended = milcore("train", store_uri, str(tmp_path / "run"), "--config", str(file), "--epochs", "1", "--json")
    settings = last_object(ended)["train"]
    assert (settings["pooling"], settings["epochs"]) == ("max", 1)


def test_encoder_conv_trains_from_patches_without_naming_features(store_uri: str, tmp_path: Path) -> None:
    ended = milcore("train", store_uri, str(tmp_path / "run"), "--encoder", "conv", "--epochs", "1", "--json")
    assert ended.returncode == 0, ended.stderr
    assert last_object(ended)["train"]["features"] is None


@pytest.mark.cluster
@pytest.mark.long
def test_a_sweep_s_best_config_and_splits_train_on_ray_workers(store_uri: str, tmp_path: Path) -> None:
    sweep, run = str(tmp_path / "sweep"), str(tmp_path / "run")
    ended = milcore("tune", store_uri, sweep, *SMALL, "--pooling", "max,mean", "--trials", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    places = ["--config", f"{sweep}/best.json", "--splits", f"{sweep}/splits.parquet"]
    ended = milcore("train", store_uri, run, *places, "--workers", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    assert last_object(ended)["train"] == last_object(milcore("info", run, "--json"))["train"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "STORE", "OUT", "--pooling", "median"], "pooling: expected 'max'"),
        (["train", "STORE", "OUT", "--features", "uni"], "16 of 16 slides have no features/uni"),
        (
            ["train", "STORE", "OUT", "--features", "mean_rgb", "--encoder", "conv"],
            "such as conv or lenet5, without features",
        ),
        (["train", "STORE", "OUT", "--splits", "absent.parquet"], "splits: expected a file, got nothing at"),
        (["tune", "STORE", "OUT", "--splits", "."], "splits: expected a file, got nothing at ."),
        (["train", "nowhere", "OUT"], "expected a patch store, got no manifest.parquet"),
        (["train", "STORE", "OUT", "--config", "absent.json"], "nothing at absent.json"),
        (["tune", "STORE", "OUT", "--learning-rate-min", "1"], "learning_rate_min: expected at most learning_rate_max"),
        (["evaluate", "nowhere", "--labels-from", "store"], "labels_from: expected 'run' or 'manifest', got 'store'"),
        (["evaluate", "nowhere"], "(config.json is missing); run milcore train first"),
        (["predict", "nowhere", "OUT"], "allowed: RUN SLIDE"),
        (["info", "nowhere"], "neither a patch store"),
        (["ingest", "absent.csv", "OUT"], "absent.csv"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    line: str,
    store_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"STORE": store_uri, "OUT": str(tmp_path / "out")}
    monkeypatch.setattr(sys, "argv", ["milcore", *(places.get(word, word) for word in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert len(shown.err.strip().splitlines()) == 1
    assert line in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out" / "config.json").exists()


def test_help_gives_the_default_and_the_choices_of_a_setting() -> None:
    shown = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", CliRunner().invoke(app, ["train", "--help"]).output).split())
    assert f"({', '.join(POOLING_NAMES)}) [default: gated_attention]" in shown
    assert f"[default: {TrainConfig().learning_rate}]" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["info RUN", "ingest MANIFEST STORE", "train STORE RUN", "predict RUN slide.tiff OUT"]
)
def test_storage_that_refuses_is_one_line_and_no_absence(
    command: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    (tmp_path / "manifest.csv").write_text("slide_id,uri,label\na,a.tiff,0\nb,b.tiff,1\n")
    places = {"MANIFEST": str(tmp_path / "manifest.csv"), "STORE": f"{s3}/refused", "RUN": f"{s3}/refused-run",
              "OUT": f"{s3}/refused-out"}  # fmt: skip
    for name, place in places.items():
        command = command.replace(name, place)
    ended = milcore(*command.split())
    assert ended.returncode == 1, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert re.match(f"milcore: {s3}/refused.*: PermissionError: ", line)


def test_a_file_that_a_command_cannot_do_without_is_one_line(store_uri: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert milcore("train", store_uri, str(run), *SMALL).returncode == 0
    (run / "splits.parquet").unlink()
    ended = milcore("info", str(run))
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "splits.parquet" in ended.stderr


def test_lines_quote_data_without_its_control_characters(tmp_path: Path) -> None:
    """A cell, the class name of a store that others made, and a path; as JSON they are escaped already."""
    (tmp_path / "manifest.csv").write_text("slide_id,uri,label\na,\x1b[2Ja.svs,red\nb,b.svs,blue\n")
    store = str(tmp_path / "store")
    slide = Slide("a", "a.svs", 0, "a", "", None, None, None)
    PatchStore(store).write_manifest(Manifest((slide,), ("\x1b[31mred", "blue")))
    ended = [milcore("ingest", str(tmp_path / "manifest.csv"), store), milcore("info", store),
             milcore("info", f"{tmp_path}/\x1b[2J")]  # fmt: skip
    assert [end.returncode for end in ended] == [2, 0, 2]
    assert r"\x1b" in ended[0].stderr
    assert r"\x1b[31mred" in ended[1].stdout
    assert r"\x1b[2J" in ended[2].stderr
    for end in ended:
        assert "\x1b" not in end.stdout + end.stderr
        assert "Traceback" not in end.stderr


def test_a_catalogue_is_verified_told_of_and_made_anew(tmp_path: Path) -> None:
    """One that is out of date, one of a process that was killed, and that of a run, which has none."""
    uri = str(tmp_path / "store")
    store = write_store(uri, slides=3)
    assert milcore("info", uri, "--rebuild").returncode == 0
    assert store.catalogue().unknown_ids == []
    assert milcore("info", uri, "--verify").returncode == 0
    write_features(store)  # renews the rows
    assert milcore("info", uri, "--verify", "--json").returncode == 0
    shutil.rmtree(f"{store.group_uri('s01')}/features")  # as a person does
    ended = milcore("info", uri, "--verify")
    assert ended.returncode == 2
    assert "slide 's01': catalogue" in ended.stderr
    store.row_writer("ingest", ["s00", "s01"])  # killed
    assert "2 slide(s)" in milcore("info", uri).stderr
    ended = milcore("info", uri, "--rebuild", "--verify", "--json")
    assert (ended.returncode, last_object(ended)["features"]) == (0, {"mean_rgb": 2})
    assert store.catalogue().unknown_ids == []
    ended = milcore("info", str(tmp_path / "nothing"), "--rebuild")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
