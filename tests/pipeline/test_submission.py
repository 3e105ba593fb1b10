"""What submitting sends, how it waits, and what it says when the API refuses or goes away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kfp import Client

from milcore.runtime import storage
from pipeline import submission
from pipeline.__main__ import main
from tests.conftest import free_ports
from tests.pipeline.conftest import StandIn

ROOT = Path(__file__).resolve().parents[2]
PLACES = ["--manifest", "s3://b/m.csv", "--store-uri", "s3://b/store", "--run-uri", "s3://b/run"]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of this machine, and no waiting."""
    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(submission, "SECONDS_BETWEEN_CALLS", 0.01)
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH", raising=False)


def test_submitting_sends_the_pipeline_and_the_values_given(api: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    arguments = ["--learning-rate-max", "0.01", "--image", "registry/mil:1", "--token-file", str(tmp_path / "token")]
    command = [sys.executable, "-m", "pipeline", "submit", "--host", api, *PLACES, *arguments, "--wait", "30"]
    surroundings = {**os.environ, "HOME": str(tmp_path)}  # kfp writes there
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=surroundings)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split("\n")[-3:-1] == ["r1", "SUCCEEDED"]
    (run,) = StandIn.runs
    values = run["runtime_config"]["parameters"]
    assert [values[name] for name in ("manifest", "store_uri", "run_uri")] == PLACES[1::2]
    assert values["learning_rate_max"] == 0.01
    spec = run["pipeline_spec"].get("pipeline_spec", run["pipeline_spec"])
    assert {its["container"]["image"] for its in spec["deploymentSpec"]["executors"].values()} == {"registry/mil:1"}
    assert StandIn.tokens == {"Bearer secret"}


def submit(api: str, *arguments: str) -> int:
    return main(["submit", "--host", api, *PLACES, *arguments])


def test_a_profile_s_namespace_goes_with_the_experiment(api: str) -> None:
    assert submit(api, "--namespace", "team-a") == 0
    assert [path for path in StandIn.paths if "/experiments" in path and "namespace=team-a" in path]


def test_a_run_that_fails_on_the_cluster_fails_the_command(
    api: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StandIn, "state", "FAILED")
    assert submit(api, "--wait", "30") == 1
    assert capsys.readouterr().err.startswith("pipeline: run r1 ended as FAILED")


@pytest.mark.parametrize(("exit_code", "run_id", "line"), [
    (2, "r1", "pipeline: run r1 ended as FAILED, step plan: no manifest at s3://b/m.csv"),
    (1, "r1", "pipeline: run r1 ended as FAILED, step plan: no manifest at s3://b/m.csv"),
    (1, "r0", "pipeline: run r1 ended as FAILED; its steps and logs are in the Kubeflow UI"),
])  # fmt: skip
def test_a_run_that_fails_says_step_and_line_and_exits_as_the_step(
    api: str, exit_code: int, run_id: str, line: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The status of an earlier run in the folder is none of this one's."""
    monkeypatch.setattr(StandIn, "state", "FAILED")
    failure = {"step": "plan", "error": "no manifest at s3://b/m.csv", "exit_code": exit_code}
    storage.write_json(str(tmp_path / "status.json"), {"state": "FAILED", "run_id": run_id, **failure})
    places = ["--manifest", "m", "--store-uri", "s", "--run-uri", str(tmp_path)]
    assert main(["submit", "--host", api, *places, "--wait", "30"]) == exit_code
    assert capsys.readouterr().err.strip() == line


def test_a_token_that_is_renewed_while_a_run_is_followed_is_read_again(
    api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("first")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(StandIn, "state", "RUNNING")

    def renew(_: float) -> None:
        (tmp_path / "token").write_text("second")
        StandIn.state = "SUCCEEDED"

    monkeypatch.setattr(submission.time, "sleep", renew)
    assert submit(api, "--wait", "30") == 0
    assert StandIn.tokens == {"Bearer first", "Bearer second"}


@pytest.mark.parametrize("code", [500, 503, 429, 0])
def test_an_api_that_is_away_while_a_run_is_followed_is_asked_again(
    api: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "faults", [code, code])
    assert submit(api, "--wait", "30") == 0
    assert StandIn.faults == []


def test_an_api_that_stays_away_is_an_error_of_one_line(
    api: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StandIn, "faults", [503] * 50)
    monkeypatch.setattr(submission, "SECONDS_AWAY", 0.02)
    assert submit(api, "--wait", "30") == 1
    assert capsys.readouterr().err.startswith("pipeline: lost run r1, which goes on without this command: (503)")


@pytest.mark.parametrize("code", [401, 403])
def test_a_refusal_while_a_run_is_followed_is_not_waited_out(
    api: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StandIn, "faults", [code])
    assert submit(api, "--wait", "30") == 1
    assert f"lost run r1, which goes on without this command: ({code})" in capsys.readouterr().err


def test_nobody_at_the_address_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    host = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert submit(host) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"pipeline: no Kubeflow Pipelines API answers at {host}: ")


def test_a_token_file_that_is_absent_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("http://127.0.0.1:1", "--token-file", str(tmp_path / "absent")) == 2
    assert "allowed: a file that holds the token" in capsys.readouterr().err


def test_a_report_that_cannot_be_fetched_does_not_hide_that_the_run_succeeded(
    api: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--manifest", "m", "--store-uri", "s", "--run-uri", str(tmp_path)]
    assert main(["submit", "--host", api, *places, "--wait", "30", "--report", str(tmp_path / "report.html")]) == 1
    shown = capsys.readouterr()
    assert "SUCCEEDED" in shown.out
    assert shown.err.startswith(f"pipeline: the run has succeeded, but {tmp_path}/report.html cannot be copied")
