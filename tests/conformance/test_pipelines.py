"""The cases of Kubeflow Pipelines: what its API is asked for, what is read from the cluster, and the clean-up."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from kfp import Client

from milcore.cluster.jobs.rayjob_spec import RUN_LABEL, short_hash
from tests.conformance import pipelines
from tests.conformance.case import Clock, UnexpectedError
from tests.conformance.conftest import MakeSurroundings, Surroundings
from tests.conformance.kubeflow import Kubeflow
from tests.conformance.runner import run_cases
from tests.conformance.stage import RAYJOBS
from tests.conformance.table import ON_KUBEFLOW
from tests.pipeline.conftest import StandIn, _serve

EXPERIMENT = {"experiment_id": "e1", "display_name": "conformance", "namespace": ""}
RUN_URI = "s3://bucket/conformance/mil/kfp/run"


class Server(StandIn):
    """The stand-in of Kubeflow's API, with runs that are terminated, recur and are deleted."""

    changes: ClassVar[list[str]] = []
    on_terminate: ClassVar[Callable[[], object]] = staticmethod(lambda: None)

    def do_GET(self) -> None:  # noqa: N802 - the base class calls it so
        path = self.path.partition("?")[0]
        if path.endswith("/runs"):
            runs = [{"run_id": "r1"}, {"run_id": "r2", "recurring_run_id": "rr1", "state": self.state}]
            self._answer({"runs": runs, "total_size": 2})
        elif path.endswith("/runs/r2"):
            self._answer({"run_id": "r2", "state": self.state})
        else:
            super().do_GET()

    def do_POST(self) -> None:  # noqa: N802 - the base class calls it so
        path = self.path.partition("?")[0].rpartition("/")[2]
        if path in {"runs", "experiments"}:
            super().do_POST()
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.changes.append(f"POST {path}")
        if path.endswith(":terminate"):
            type(self).on_terminate()
        self._answer({"recurring_run_id": "rr1"} if path == "recurringruns" else {})

    def do_DELETE(self) -> None:  # noqa: N802 - the base class calls it so
        self.changes.append(f"DELETE {self.path.partition('/v2beta1/')[2].partition('?')[0]}")
        self._answer({})


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Server, "changes", [])
    monkeypatch.setattr(Server, "state", "SUCCEEDED")
    yield from _serve(Server, monkeypatch)


@pytest.fixture
def place(surroundings: MakeSurroundings) -> Surroundings:
    return surroundings()


@pytest.fixture
def kubeflow(host: str, place: Surroundings) -> Kubeflow:
    """Kubeflow in a namespace of its own; waits of minutes are a few looks."""
    cluster = place.cluster()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that the client is of version 2
        return Kubeflow(
            Client(host=host), host, cluster, cluster.beside("kubeflow"), "", "s3://mlpipeline/v2/artifacts"
        )


def parameters(k: int = -1) -> dict[str, Any]:
    return dict(StandIn.runs[k]["runtime_config"]["parameters"])


def test_the_main_pipeline_is_submitted_by_the_project_s_own_command_and_followed(
    kubeflow: Kubeflow, place: Surroundings
) -> None:
    assert pipelines.main_pipeline(kubeflow, Clock()) == "SUCCEEDED"
    assert kubeflow.runs == {"main": "r1"}
    assert parameters()["run_uri"] == RUN_URI
    assert parameters()["manifest"] == "s3://bucket/conformance/mil/cohort/manifest.csv"
    assert (parameters()["ray_address"], parameters()["cluster_profile"]) == ("rayjob", "/etc/milcore/profile.yaml")
    spec = StandIn.runs[0]["pipeline_spec"]
    assert "milcore:1" in json.dumps(spec)


def test_a_run_that_fails_is_a_row_that_fails(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "state", "FAILED")
    with pytest.raises(UnexpectedError, match=r"FAILED: .*run r1 ended as FAILED"):
        pipelines.main_pipeline(kubeflow, Clock())


def test_sweep_and_prediction_work_on_what_the_main_pipeline_made(kubeflow: Kubeflow) -> None:
    assert pipelines.sweep_pipeline(kubeflow, Clock()) == "SUCCEEDED"
    assert parameters()["store_uri"] == "s3://bucket/conformance/mil/kfp/store"
    assert pipelines.predict_pipeline(kubeflow, Clock()) == "SUCCEEDED"
    assert (parameters()["run_uri"], parameters()["slides"]) == (
        RUN_URI, ["s3://bucket/conformance/mil/cohort/slides/slide-0000.tiff"]
    )  # fmt: skip


def test_compiled_pipelines_name_the_image(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "PIPELINES", (pipelines.PREDICT,))
    assert pipelines.compile_all(kubeflow, Clock()) == "1 files that name the image"


def add_pods(place: Surroundings, run_id: str, count: int, name: str = "driver") -> None:
    for k in range(count):
        pod = {
            "metadata": {"name": f"{name}-{k}", "labels": {"pipeline/runid": run_id}},
            "status": {"phase": "Running"},
        }
        place.stage.objects.by_path[f"/api/v1/namespaces/mil-kubeflow/pods/{name}-{k}"] = pod


@pytest.mark.parametrize(("pods", "is_well"), [(16, True), (18, False), (0, False)])
def test_a_run_again_has_fewer_pods(kubeflow: Kubeflow, place: Surroundings, pods: int, is_well: bool) -> None:
    add_pods(place, "r1", pods)
    if is_well:
        assert pipelines.caching(kubeflow, Clock()) == "SUCCEEDED, 16 pods of 18 without the cache"
    else:
        with pytest.raises(UnexpectedError, match=f"{pods} pods"):
            pipelines.caching(kubeflow, Clock())


def test_artifacts_are_read_by_a_pod(kubeflow: Kubeflow, place: Surroundings, tmp_path: Path) -> None:
    kubeflow.runs["main"] = "r1"
    sizes = {f"s3://mlpipeline/v2/artifacts/attention-mil/r1/x/{name}": 7 for name in ("report", "model_card")}
    place.stage.lines |= {"artifacts": json.dumps(sizes), "metrics": json.dumps({"auroc": 1.0})}
    assert pipelines.artifacts(kubeflow, Clock()) == "report 7 bytes, model card 7 bytes, 1 metrics"
    folder = "s3://mlpipeline/v2/artifacts/attention-mil/r1"
    program = next(command[2] for command in place.stage.commands if folder in command[2])
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "report").write_text("<html>")
    command = [sys.executable, "-c", program.replace(folder, str(tmp_path / "made"))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == {f"{tmp_path}/made/report": 6}
    place.stage.lines["artifacts"] = json.dumps(dict(list(sizes.items())[:1]))
    with pytest.raises(UnexpectedError, match=r"\['report'\] below s3://mlpipeline/v2/artifacts/attention-mil/r1"):
        pipelines.artifacts(kubeflow, Clock())


def test_a_failing_step_is_named_by_the_run_s_status(
    kubeflow: Kubeflow, place: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "state", "FAILED")
    status = {"state": "FAILED", "step": "plan", "error": "manifest: expected a file, got nothing"}
    place.stage.lines["status"] = json.dumps(status)
    assert pipelines.failing_step(kubeflow, Clock()) == f"step plan: {status['error']}"
    place.stage.lines["status"] = json.dumps({**status, "error": None})
    with pytest.raises(UnexpectedError, match="None"):
        pipelines.failing_step(kubeflow, Clock())


def test_a_step_s_pod_is_killed_and_not_a_driver_s(kubeflow: Kubeflow, place: Surroundings) -> None:
    add_pods(place, "r1", 2)
    add_pods(place, "r1", 1, "attention-mil-x-system-container-impl")
    assert pipelines.retry(kubeflow, Clock()).startswith("SUCCEEDED after attention-mil-x-system-container-impl-0")
    assert place.stage.calls == [
        "DELETE namespaces/mil-kubeflow/pods/attention-mil-x-system-container-impl-0 gracePeriodSeconds=0"
    ]


@pytest.mark.parametrize("is_freed", [True, False])
def test_terminate_is_to_free_the_run_s_clusters(
    kubeflow: Kubeflow, place: Surroundings, monkeypatch: pytest.MonkeyPatch, is_freed: bool
) -> None:
    path, jobs = f"{RAYJOBS.format('mil-kubeflow')}/x-r0", place.stage.objects.by_path
    jobs[path] = {"metadata": {"name": "x-r0", "labels": {RUN_LABEL: short_hash("r1")}}}
    monkeypatch.setattr(Server, "state", "CANCELED")
    monkeypatch.setattr(Server, "on_terminate", staticmethod(lambda: jobs.pop(path) if is_freed else None))
    if is_freed:
        assert pipelines.terminate(kubeflow, Clock()) == "CANCELED, RayJobs gone"
    else:
        with pytest.raises(UnexpectedError, match="RayJobs removed"):
            pipelines.terminate(kubeflow, Clock())
    assert Server.changes == ["POST r1:terminate"]


def test_a_recurring_run_is_stopped_once_it_has_started_a_run(kubeflow: Kubeflow) -> None:
    assert pipelines.recurring(kubeflow, Clock()) == "started by itself, SUCCEEDED"
    assert Server.changes == ["POST recurringruns", "DELETE recurringruns/rr1"]


def test_kubeflow_s_namespace_is_set_up_where_it_is_not_and_left_as_it_was(
    kubeflow: Kubeflow, place: Surroundings
) -> None:
    kubeflow.recurring = ["rr1"]
    assert kubeflow.install() == "namespace mil-kubeflow was set up"
    kubeflow.remove()
    assert place.kubectl_calls == [
        "apply overlays/local in mil-kubeflow", "delete overlays/local in mil-kubeflow --ignore-not-found",
    ]  # fmt: skip
    assert Server.changes == [
        "DELETE recurringruns/rr1", "POST r1:terminate", "POST r2:terminate", "DELETE runs/r1", "DELETE runs/r2",
        "DELETE experiments/e1",
    ]  # fmt: skip
    assert place.stage.objects.by_path == {}


def test_a_namespace_that_is_set_up_is_used_and_left(kubeflow: Kubeflow, place: Surroundings) -> None:
    kubeflow.place.create("secrets", {"metadata": {"name": "milcore-s3"}})
    assert kubeflow.install() == "namespace mil-kubeflow is set up already: used as it is"
    kubeflow.remove()
    assert place.kubectl_calls == []
    assert list(place.stage.objects.by_path) == ["/api/v1/namespaces/mil-kubeflow/secrets/milcore-s3"]


def test_without_a_host_the_cases_of_kubeflow_are_not_run(place: Surroundings) -> None:
    seen = {row.seen for row in run_cases(ON_KUBEFLOW, {"cluster": place.cluster()})}
    assert seen == {"not run: no --kfp HOST"}
