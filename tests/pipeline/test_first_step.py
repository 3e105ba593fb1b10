"""The first step of a pipeline refuses RayJobs that cannot run, before any slide is read."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.finish import finish
from components.plan import plan
from components.size import size
from milcore import api
from milcore.errors import InputError
from milcore.runtime import step_retry, storage
from milcore.runtime.step_retry import OWN_RETRIES
from pipeline import attention_mil
from tests.cluster.doctor.kubernetes_api import REVIEWS, FakeCluster, forbidden
from tests.cluster.http_api import serving_here
from tests.proxy import Fault, counted_storage

WHOLE = inspect.signature(attention_mil.pipeline_func).parameters
Step = Callable[..., object]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """The namespace that this process works in."""
    fake = FakeCluster({})
    monkeypatch.setenv("PIPELINE_RUN_ID", "run-1")
    with serving_here(fake, tmp_path, monkeypatch):
        yield fake


def run(component: Any, folder: Path, **given: object) -> object:
    """A first step by the pipeline's defaults, with jobs on Kubernetes."""
    (folder / "m.csv").write_text("slide_id,uri,label\na,a.svs,0\nb,b.svs,1\n")
    places = {"manifest": folder / "m.csv", "store_uri": folder / "store", "run_uri": folder / "run"}
    names = inspect.signature(component.python_func).parameters
    values = {name: str(places[name]) if name in places else WHOLE[name].default for name in names}
    return component.python_func(**values | {"ray_address": "rayjob"} | given)


@pytest.mark.parametrize("first", [plan, size])
def test_where_all_is_there_the_pipeline_goes_on(cluster: FakeCluster, tmp_path: Path, first: Any) -> None:
    assert run(first, tmp_path)
    assert set(cluster.accepted) == {REVIEWS}, "rights are asked for, and nothing else"


def test_an_address_of_another_kind_asks_kubernetes_nothing(cluster: FakeCluster, tmp_path: Path) -> None:
    assert run(plan, tmp_path, ray_address="http://head:8265", encode_workers=99)
    assert not cluster.accepted


def lacks(verb: str, resource: str) -> Callable[[FakeCluster, Path], dict[str, object]]:
    def change(cluster: FakeCluster, _: Path) -> dict[str, object]:
        cluster.denied_rights.add((verb, resource))
        return {}

    return change


def profile(text: str | None, **given: object) -> Callable[[FakeCluster, Path], dict[str, object]]:
    def change(_: FakeCluster, folder: Path) -> dict[str, object]:
        if text is not None:
            (folder / "profile.yaml").write_text(text)
        return {"cluster_profile": str(folder / "profile.yaml"), **given}

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lacks("get", "pods/log"), "rights: expected 8 of the launcher in namespace mil, got none to get pods/log; "),
        (profile(None), "cluster_profile: expected a file, got nothing at"),
        (profile("head_cpus: [1"), "cluster_profile: expected YAML or JSON"),
        (profile("hed_cpus: 1"), "hed_cpus: expected a setting"),
        (
            profile("cpu_nodes: {cpus: 4, max_nodes: 2}", workers=9),
            "workers: expected at most 8, got 9, which need 3 nodes of 4; allowed: max_nodes 2 of the cluster profile",
        ),
        (profile("gpu_nodes: {gpus: 1, max_nodes: 1}", workers=2, use_gpu=True), "workers: expected at most 1, got 2"),
    ],
)
@pytest.mark.parametrize("first", [plan, size])
def test_a_fault_is_one_line_code_2_and_in_the_run_s_status(
    cluster: FakeCluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first: Any,
    change: Callable[[FakeCluster, Path], dict[str, object]],
    line: str,
) -> None:
    given = change(cluster, tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(first, tmp_path, **given)
    assert ended.value.code == InputError.exit_code
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith(f"milcore: {line}")
    assert status_of(tmp_path, first.name) == {"step": first.name, "error": shown[9:], "exit_code": 2}


def status_of(folder: Path, step: str) -> dict[str, Any]:
    """Step, line and code of ``status.json`` as the exit handler writes it."""
    failure = dsl.PipelineTaskFinalStatus(
        state="FAILED", pipeline_job_resource_name="j", pipeline_task_name=step, error_code=None, error_message=None
    )
    finish.python_func(str(folder / "run"), str(folder / "store"), "local", failure)
    status = storage.read_json(str(folder / "run/status.json"))
    return {name: status[name] for name in ("step", "error", "exit_code")}


@pytest.mark.parametrize("name", ["ingest_workers", "encode_workers"])
def test_workers_of_every_job_have_to_fit(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit):
        run(plan, tmp_path, **{name: 17})
    assert f"{name}: expected at most 16, got 17" in capsys.readouterr().err
    assert not cluster.accepted


def test_a_namespace_that_tells_nobody_their_rights_stops_no_pipeline(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.answers[REVIEWS] = (403, forbidden(REVIEWS))
    assert run(size, tmp_path)
    assert "not checked" in capsys.readouterr().err


def test_an_api_that_comes_back_costs_no_pipeline(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(OWN_RETRIES, "1")
    monkeypatch.setattr(step_retry, "FIRST_WAIT_S", 0.0)
    rights, faults = cluster.answer, [(503, {})]
    cluster.answer = lambda request: faults.pop() if faults else rights(request)  # type: ignore[method-assign]
    assert run(size, tmp_path)
    assert "503 Service Unavailable; trying again" in capsys.readouterr().err


@pytest.mark.parametrize("after_planning", [False, True], ids=["planning", "survey"])
def test_a_request_to_storage_that_fails_is_made_again(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after_planning: bool
) -> None:
    """Of the survey, too, which looks at what the store holds once the cohort is planned."""
    monkeypatch.setenv(OWN_RETRIES, "1")
    monkeypatch.setattr(step_retry, "FIRST_WAIT_S", 0.0)
    store, passed, fault_at = f"{s3}/first-step", itertools.count(), [0]
    with counted_storage(lambda _: Fault(403 if next(passed) in fault_at else None)) as proxy:
        fault_at.clear()
        local = {"ray_address": "local", "store_uri": store}
        assert run(plan, tmp_path, **local)
        proxy.take()
        api.plan_ingestion(str(tmp_path / "m.csv"), store, None, 4)
        planning, before = len(proxy.take().requests), next(passed)
        fault_at.append(before + 1 + (planning if after_planning else 0))
        capsys.readouterr()
        assert run(plan, tmp_path, **local)
        assert len(proxy.take().requests) > planning
    assert [line for line in capsys.readouterr().err.splitlines() if "403" in line or "trying again" in line]


def test_an_api_that_does_not_answer_is_no_fault_of_the_input(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.answers[REVIEWS] = (503, {})
    with pytest.raises(SystemExit) as ended:
        run(size, tmp_path)
    assert ended.value.code == 1
