"""The whole pipeline, step after step in kfp's local runner, with a Ray of its own: from slides to the report."""

import builtins
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milcore.errors import MILError
from milcore.runtime import storage
from milcore.store.store import PatchStore
from milcore.training.run_folder import Run
from milcore.training.sweep import Sweep
from pipeline import __main__ as main_module
from tests.pipeline.conftest import Executing

SLIDES = 14
EDGE_PX = 320
SETTINGS = [
    "--partitions", "2", "--patch-size", "64", "--trials", "2", "--poolings", "max,attention", "--epochs", "3",
    "--settings", '{"train": {"hidden": 16, "attention_hidden": 8}}', "--workers", "2", "--baselines", "false",
]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def write_cohort(folder_uri: str, scratch: Path) -> str:
    """Plain images of pink noise on white glass, positive ones with a dark corner; and one file that is no slide."""
    generator = np.random.default_rng(0)
    lines = ["slide_id,uri,label,patient_id,mpp"]
    for k in range(SLIDES):
        pixels = np.full((EDGE_PX, EDGE_PX, 3), 250, np.uint8)
        tissue = generator.normal((215.0, 150.0, 190.0), 12.0, (256, 256, 3))
        if k % 2:
            tissue[:64, :64] -= 70.0
        pixels[:256, :256] = tissue.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(scratch / "slide.png")
        storage.write_bytes(storage.join(folder_uri, f"s{k:02d}.png"), (scratch / "slide.png").read_bytes())
        lines.append(f"s{k:02d},s{k:02d}.png,{k % 2},p{k:02d},0.5")
    storage.write_bytes(storage.join(folder_uri, "broken.png"), b"no image")
    lines.append("broken,broken.png,0,p99,0.5")
    manifest = storage.join(folder_uri, "manifest.csv")
    storage.write_bytes(manifest, "\n".join([*lines, ""]).encode())
    return manifest


def command(manifest: str, folder_uri: str) -> list[str]:
    places = ["--store-uri", storage.join(folder_uri, "store"), "--run-uri", storage.join(folder_uri, "run")]
    return [sys.executable, "-m", "pipeline", "run", "--manifest", manifest, *places, *SETTINGS]


def check_outcome(folder_uri: str) -> None:
    """Every slide is accounted for, and the run folder holds what the contract says."""
    store, run = PatchStore(storage.join(folder_uri, "store")), storage.join(folder_uri, "run")
    assert store.slide_ids() == [f"s{k:02d}" for k in range(SLIDES)]
    assert list(store.quarantined()) == ["broken"]
    assert Run(run).spec().train == Sweep(storage.join(run, "tune")).best()
    published = {"config.json", "splits.parquet", "model.safetensors", "history.parquet", "metrics.json",
                 "predictions.parquet", "report.html", "MODEL_CARD.md", "attention", "tune"}  # fmt: skip
    assert published <= set(storage.names(run))
    metrics = storage.read_json(storage.join(run, "metrics.json"))
    assert metrics["report"] == "report.html"
    assert 0.0 <= metrics["auroc"] <= 1.0
    splits = [storage.read_table(storage.join(run, *place, "splits.parquet")) for place in (["tune"], [])]
    assert splits[0].equals(splits[1])


def written(uri: str) -> object:
    """When the object was written."""
    fs, path = storage.filesystem(uri)
    info = fs.info(path)
    return info["mtime"] if storage.is_local(uri) else info["LastModified"]


def run_until_training(started: list[str], run: str, log: Path) -> str:
    """Run the pipeline and kill it with all its steps once training has begun; what it had printed by then."""
    with log.open("w") as out, subprocess.Popen(started, start_new_session=True, stdout=out) as process:
        while not storage.exists(storage.join(run, "config.json")):
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    return log.read_text()


@pytest.mark.parametrize("folder_uri", [pytest.param("local", marks=pytest.mark.long), "s3"], indirect=True)
def test_killed_in_the_middle_it_redoes_only_what_is_missing(folder_uri: str, tmp_path: Path) -> None:
    manifest = write_cohort(storage.join(folder_uri, "cohort"), tmp_path)
    store, run = storage.join(folder_uri, "store"), storage.join(folder_uri, "run")
    started = [*command(manifest, folder_uri), "--pipeline-root", str(tmp_path / "artifacts")]
    seen = run_until_training(started, run, tmp_path / "log")
    assert "quarantined broken:" in seen
    assert "2/2 trials" in seen
    assert not storage.exists(storage.join(run, "model.safetensors"))
    done = [storage.join(run, "tune", "best.json"), storage.join(run, "tune", "trials.parquet")]
    for k in range(SLIDES):
        group = storage.join(store, "slides", f"s{k:02d}.zarr")
        done += [storage.join(group, "zarr.json"), storage.join(group, "features", "efficientnet_lite0", "zarr.json")]
    before = {uri: written(uri) for uri in done}
    time.sleep(1.1)  # S3 tells the time of a write in whole seconds
    ended = subprocess.run(started, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    check_outcome(folder_uri)
    assert {uri: written(uri) for uri in done} == before
    assert ended.stdout.strip().split("\n")[-1] == f"report: {storage.join(run, 'report.html')}"
    artifacts = {path.name: path for path in (tmp_path / "artifacts").rglob("*")}
    assert artifacts["model"].read_bytes() == storage.read_bytes(storage.join(run, "model.safetensors"))
    assert artifacts["report"].read_bytes() == storage.read_bytes(storage.join(run, "report.html"))
    assert {"model_card", "attention"} <= artifacts.keys()


@pytest.mark.parametrize(
    ("manifest", "arguments", "line"),
    [
        ("slide_id,label\ns1,0\n", [], "got slide_id, label; allowed: further columns; add uri"),
        (
            "slide_id,uri,label\ns1,a.svs,0\n",
            ["--learning-rate-min", "1"],
            "learning_rate_min: expected at most learning_rate_max 0.001, got 1",
        ),
        ("slide_id,uri,label\ns1,a.svs,0\n", ["--poolings", "median"], "tune.poolings.0: expected 'max', 'mean'"),
        (
            "slide_id,uri,label\ns1,a.svs,0\n",
            ["--settings", '{"train": {"hiden": 1}}'],
            "train.hiden: expected a setting",
        ),
        (
            "slide_id,uri,label\ns1,a.svs,0\n",
            ["--settings", '{"train": {"epochs": 4}}'],
            "train.epochs: expected one value",
        ),
        ("slide_id,uri,label\ns1,a.svs,0\n", ["--settings", '{"encode": {"name": "a b"}}'], "encode.name: expected"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(
    manifest: str, arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.csv").write_text(manifest)
    given = command(str(tmp_path / "manifest.csv"), str(tmp_path))[3:]
    assert main_module.main([*given, *arguments]) == 2
    shown = capsys.readouterr()
    assert line in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert shown.out == ""


def test_a_step_that_fails_fails_the_run_and_says_where_to_look(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.csv").write_text("slide_id,uri,label\ns1,absent.svs,0\n")
    given = command(str(tmp_path / "manifest.csv"), str(tmp_path))[3:]
    assert main_module.main([*given, "--store-uri", str(tmp_path / "manifest.csv" / "store")]) == 1
    shown = capfd.readouterr()
    assert "NotADirectoryError" in shown.out
    assert shown.err.strip().split("\n")[-1].startswith("pipeline: ")
    assert storage.read_json(str(tmp_path / "run" / "status.json"))["state"] == "FAILED"


def test_print_is_given_back_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two threads of the runner can leave its indenting print behind."""

    def leaves_its_own(*_: object, **__: object) -> None:
        builtins.print = len  # type: ignore[assignment]
        raise MILError("a step failed")

    ours = builtins.print
    (tmp_path / "manifest.csv").write_text("slide_id,uri,label\ns1,absent.svs,0\n")
    monkeypatch.setattr(main_module.local, "init", leaves_its_own)
    assert main_module.main(command(str(tmp_path / "manifest.csv"), str(tmp_path))[3:]) == 1
    assert builtins.print is ours


def submit_and_wait(api: str, manifest: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    given = command(manifest, str(folder))[4:]
    sent = [sys.executable, "-m", "pipeline", "submit", "--host", api, "--wait", "600", *given, *more]
    surroundings = {**os.environ, "HOME": str(folder)}
    return subprocess.run(sent, capture_output=True, text=True, check=False, env=surroundings)


def test_a_cohort_without_a_usable_slide_fails_what_is_submitted(executing_api: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("slide_id,uri,label\ns1,absent.svs,0\n")
    ended = submit_and_wait(executing_api, str(tmp_path / "manifest.csv"), tmp_path)
    assert ended.returncode == 2, "as the step's own process"
    assert ended.stdout.split()[-2:] == ["RUNNING", "FAILED"]
    assert "none of 1 slides is ok" in Executing.output
    status = storage.read_json(str(tmp_path / "run" / "status.json"))
    assert {name: status[name] for name in ("state", "step", "exit_code", "run_id")} == {
        "state": "FAILED", "step": "encode", "exit_code": 2, "run_id": "r1"
    }  # fmt: skip
    assert status["error"].startswith("none of 1 slides is ok; the first, 's1'")
    assert ended.stderr.strip().split("\n")[-1] == f"pipeline: run r1 ended as FAILED, step encode: {status['error']}"
    assert storage.names(str(tmp_path / "store" / "failures")) == []


@pytest.mark.long
def test_a_report_comes_home_from_what_was_submitted(executing_api: str, tmp_path: Path) -> None:
    manifest = write_cohort(str(tmp_path / "cohort"), tmp_path)
    ended = submit_and_wait(executing_api, manifest, tmp_path, "--report", str(tmp_path / "report.html"))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "report.html").read_bytes() == (tmp_path / "run" / "report.html").read_bytes()
