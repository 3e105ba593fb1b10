"""How a run ended: the steps' lines, and the states that Kubeflow has when its exit handler runs."""

import contextlib
import signal
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.encode import encode
from components.finish import finish
from components.tune import tune
from milcore.errors import InputError
from milcore.runtime import storage
from milcore.runtime.command import Termination
from milcore.runtime.step_failure import kept_failure
from milcore.runtime.step_retry import SCHEDULER_RETRIES


@pytest.fixture(autouse=True)
def _run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_RUN_ID", "run-1")


def status_after(folder: Path, state: str, error: str | None = None, address: str = "local") -> dict[str, Any]:
    """``status.json`` as the exit handler writes it."""
    status = dsl.PipelineTaskFinalStatus(
        state=state, pipeline_job_resource_name="job", pipeline_task_name="steps", error_code=None, error_message=error
    )
    finish.python_func(str(folder / "run"), str(folder / "store"), address, status)
    written: dict[str, Any] = storage.read_json(str(folder / "run/status.json"))
    return written


def end_step(folder: Path, step: str, error: BaseException | None) -> None:
    """End a step on the store by an error, or well."""
    with contextlib.suppress(BaseException), kept_failure(step, str(folder / "store")):
        if error is not None:
            raise error


@pytest.mark.parametrize("state", ["FAILED", "RUNNING"])
def test_a_step_that_fails_is_named_with_its_line_and_exit_code(tmp_path: Path, state: str) -> None:
    """Kubeflow may not have noticed yet that its task has failed."""
    cluster = {"workers": 0, "use_gpu": False, "ray_address": "local", "cluster_profile": ""}
    with pytest.raises(SystemExit) as ended:
        encode.python_func(str(tmp_path / "store"), [], "efficientnet_lite0", "", **cluster)
    status = status_after(tmp_path, state)
    assert (status["state"], status["step"], status["exit_code"]) == ("FAILED", "encode", ended.value.code)
    assert "manifest" in status["error"]
    assert status["run_id"] == "run-1"
    assert status_after(tmp_path, "SUCCEEDED").get("step") is None, "the line was told, and is gone"


def test_the_line_of_a_step_on_the_run_is_found_too(tmp_path: Path) -> None:
    values = dict.fromkeys(tune.component_spec.inputs, 1) | {
        "poolings": "none",
        "settings": "",
        "bag": "slide",
        "target": "classification",
        "time": "",
        "event": "",
        "target_column": "",
    }
    places = {"store_uri": str(tmp_path / "store"), "run_uri": str(tmp_path / "run"), "ray_address": "local"}
    with pytest.raises(SystemExit):
        tune.python_func(**values | places)
    assert status_after(tmp_path, "FAILED")["step"] == "tune"


def test_the_first_failure_counts_and_none_that_a_retry_has_made_good(tmp_path: Path) -> None:
    end_step(tmp_path, "ingest 0/2", OSError("reset"))
    end_step(tmp_path, "ingest 1/2", ValueError("bad"))
    end_step(tmp_path, "encode", KeyError("later"))
    end_step(tmp_path, "ingest 0/2", None)
    status = status_after(tmp_path, "FAILED")
    assert (status["step"], status["error"], status["exit_code"]) == ("ingest 1/2", "ValueError: bad", 1)


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
def test_a_run_whose_steps_were_stopped_is_terminated(tmp_path: Path, state: str) -> None:
    """Kubeflow says RUNNING of them."""
    end_step(tmp_path, "train", Termination(signal.SIGTERM))
    status = status_after(tmp_path, state)
    assert (status["state"], status["step"]) == ("TERMINATED", "train")


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
def test_a_run_that_is_terminated_in_the_wait_before_a_retry_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setenv(SCHEDULER_RETRIES, "2")
    end_step(tmp_path, "encode", OSError("reset"))
    end_step(tmp_path, "encode", OSError("reset again"))
    status = status_after(tmp_path, state)
    assert (status["state"], status["step"]) == ("TERMINATED", "encode")
    assert status["error"].endswith("; before that: OSError: reset again")
    assert "exit_code" not in status


def test_after_its_last_attempt_a_step_has_failed_and_one_that_was_killed_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SCHEDULER_RETRIES, "2")
    kept_failure("encode", str(tmp_path / "store")).__enter__()  # of memory: it leaves no line
    end_step(tmp_path, "encode", OSError("reset"))
    end_step(tmp_path, "encode", OSError("reset again"))
    status = status_after(tmp_path, "FAILED")
    assert (status["state"], status["step"], status["error"]) == ("FAILED", "encode", "OSError: reset again")


def test_a_step_that_only_runs_has_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCHEDULER_RETRIES, "2")
    kept_failure("encode", str(tmp_path / "store")).__enter__()
    assert status_after(tmp_path, "FAILED", "the image cannot be pulled")["error"] == "the image cannot be pulled"


def test_steps_that_are_gone_without_a_line_do_not_run(tmp_path: Path) -> None:
    status = status_after(tmp_path, "RUNNING")
    assert status["state"] == "TERMINATED"
    assert status["error"].startswith("no step has failed: the run was terminated")


def test_what_kubeflow_says_of_a_failure_stays_where_no_step_left_a_line(tmp_path: Path) -> None:
    status = status_after(tmp_path, "FAILED", "the image cannot be pulled")
    assert (status["state"], status["error"]) == ("FAILED", "the image cannot be pulled")


def test_a_run_does_not_read_another_one_s_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_step(tmp_path, "encode", ValueError("of run 1"))
    monkeypatch.setenv("PIPELINE_RUN_ID", "run-2")
    assert "step" not in status_after(tmp_path, "SUCCEEDED")
    assert status_after(tmp_path, "FAILED", "of run 2")["error"] == "of run 2"


def test_a_line_that_quotes_a_secret_is_kept_without_it(tmp_path: Path) -> None:
    end_step(tmp_path, "encode", OSError("GET https://b.s3/a?X-Amz-Signature=abc\x1b[0m refused"))
    assert status_after(tmp_path, "FAILED")["error"] == "OSError: GET https://b.s3/a?*** refused"


def test_an_api_that_does_not_free_the_clusters_costs_no_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    end_step(tmp_path, "plan", InputError("no manifest"))
    for _ in range(2):  # the step is tried again, and still knows why
        with pytest.raises(SystemExit):
            status_after(tmp_path, "FAILED", address="rayjob")
        status = storage.read_json(str(tmp_path / "run/status.json"))
        assert (status["step"], status["error"]) == ("plan", "no manifest")
