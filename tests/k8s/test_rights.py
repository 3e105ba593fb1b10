"""The launcher's Role holds every call that the launcher makes, and no other."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from milcore.cluster.doctor.launcher import check_launches
from milcore.cluster.jobs.kubernetes import RayJobs
from milcore.cluster.jobs.profile import ClusterProfile
from milcore.cluster.jobs.rayjob import Launcher, StepEnvironment, delete_run_jobs
from milcore.cluster.jobs.rayjob_spec import JobRequest, Owner
from milcore.cluster.jobs.rights import LAUNCHER_RIGHTS
from milcore.config import LaunchConfig
from milcore.errors import ClusterError
from tests.cluster.doctor.kubernetes_api import REVIEWS, FakeCluster
from tests.cluster.http_api import serving, serving_here
from tests.cluster.jobs.kuberay import Call, FakeKubeRay

K8S = Path(__file__).resolve().parents[2] / "k8s"
REQUEST = JobRequest("run-1", "train", ("train", "s3://b/run"), 2, use_gpu=False)
ENVIRONMENT = StepEnvironment("run-1", "mil", Owner("pod", "uid"), None)
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
LOST = {"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING"}


class KilledError(BaseException):
    """The process is gone without a last word."""


def killed(_: float) -> None:
    raise KilledError


@pytest.fixture(scope="module")
def calls() -> set[Call]:
    """All that is called in a life: started, killed, adopted with its log, failed three times, freed."""
    fake = FakeKubeRay([RUNNING, LOST], [LOST], [LOST])
    with serving(fake) as address:
        jobs = RayJobs(client.ApiClient(client.Configuration(host=address)), "mil", waits_s=())
        with pytest.raises(KilledError):
            Launcher(jobs, REQUEST, ClusterProfile(), ENVIRONMENT, killed).run()
        fake.logs[fake.created[0]] = ["epoch 1"]
        with pytest.raises(ClusterError):
            Launcher(jobs, REQUEST, ClusterProfile(), ENVIRONMENT, lambda _: None).run()
        delete_run_jobs(jobs, "run-1")
    return set(fake.calls)


def rights(rules: list[dict[str, Any]]) -> set[Call]:
    return {
        Call(verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


@pytest.mark.parametrize("file", ["base/launcher-role.yaml", "overlays/kubeflow-profile/launcher-cluster-role.yaml"])
def test_the_role_is_what_the_launcher_calls(file: str, calls: set[Call]) -> None:
    assert rights(yaml.safe_load((K8S / file).read_text())["rules"]) == calls


def test_the_first_step_asks_only_what_everyone_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A review of one's own rights: Kubernetes gives it to all users (system:basic-user), so the Role has none."""
    fake = FakeCluster({})
    with serving_here(fake, tmp_path, monkeypatch):
        check_launches([("workers", LaunchConfig(ray_address="rayjob", workers=1))], {})
    assert set(fake.accepted) == {REVIEWS}
    assert not any("selfsubjectaccessreviews" in right.resource for right in LAUNCHER_RIGHTS)


def test_the_rights_that_are_checked_beforehand_are_those_of_the_launcher(calls: set[Call]) -> None:
    assert {Call(*right) for right in LAUNCHER_RIGHTS} == calls
