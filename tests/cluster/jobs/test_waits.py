"""What a RayJob waits for is told each minute, whatever its state, and not for ever.

Statuses and events are worded as the sources word them: the scheduler, the kubelet, the quota's admission, KubeRay.
"""

import re
from typing import Any

import pytest

from milcore.cluster.jobs.profile import ClusterProfile
from milcore.errors import ClusterError
from tests.cluster.jobs.kuberay import pod
from tests.cluster.jobs.test_rayjob import (
    DONE,
    NEW,
    RUNNING,
    STARTING,
    Kubernetes,
    MakeKubernetes,
    expected_name,
    kubernetes,
    status,
    warning,
)

__all__ = ["kubernetes"]  # a fixture

MINUTE = 12  # polls
NAME = expected_name(0)
WORKER = {"ray.io/node-type": "worker"}
NO_MEMORY = (
    "0/1 nodes are available: 1 Insufficient memory. preemption: 0/1 nodes are available: 1 No preemption victims "
    "found for incoming pod."
)
TAINTED = "0/3 nodes are available: 3 node(s) had untolerated taint {nvidia.com/gpu: }."
QUOTA = (
    'Failed to create worker Pod for the cluster mil/{}, pods "{}" is forbidden: exceeded quota: small, requested: '
    "requests.memory=4Gi, used: requests.memory=7Gi, limited: requests.memory=8Gi"
)


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def image_absent() -> dict[str, Any]:
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "milcore:9"'}
    container = {"name": "wait-gcs-ready", "image": "milcore:9", "imageID": "", "ready": False, "restartCount": 0}
    return {"phase": "Pending", "initContainerStatuses": [{**container, "state": {"waiting": waiting}}]}


def ready() -> dict[str, Any]:
    return {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


def worker(k: int, pod_status: dict[str, Any]) -> dict[str, Any]:
    return pod(f"{NAME}-abcde-cpu-worker-{k}", WORKER, **pod_status)


def waits(cluster: Kubernetes, capfd: pytest.CaptureFixture[str], **profile: Any) -> list[str]:
    """Lines of a launch about what is waited for."""
    cluster.launch(profile=ClusterProfile(**profile))
    start = f"RayJob {NAME} waits: "
    return [line.removeprefix(start) for line in capfd.readouterr().err.splitlines() if line.startswith(start)]


@pytest.mark.parametrize(
    ("pods", "line"),
    [
        ([worker(1, unscheduled(NO_MEMORY))], f"worker pod {NAME}-abcde-cpu-worker-1: Unschedulable: {NO_MEMORY}"),
        (
            [worker(k, unscheduled(TAINTED)) for k in range(3)],
            f"3 worker pods, {NAME}-abcde-cpu-worker-0 first: Unschedulable: {TAINTED}",
        ),
        (
            [worker(1, image_absent())],
            f'worker pod {NAME}-abcde-cpu-worker-1: ImagePullBackOff: Back-off pulling image "milcore:9"',
        ),
        ([worker(1, {"phase": "Pending"})], f"worker pod {NAME}-abcde-cpu-worker-1: it is being started"),
    ],
    ids=["memory", "taint", "image", "starting"],
)
@pytest.mark.parametrize("state", [STARTING, RUNNING], ids=["starting", "running"])
def test_a_pod_that_waits_is_told_each_minute_with_its_reason(
    kubernetes: MakeKubernetes, capfd: pytest.CaptureFixture[str], pods: list[Any], line: str, state: dict[str, Any]
) -> None:
    cluster = kubernetes([NEW] + [state] * 3 * MINUTE + [DONE])
    cluster.fake.pods = pods
    assert waits(cluster, capfd) == [line] * 3


def test_a_pod_whose_status_has_no_reason_is_told_with_its_last_warning(
    kubernetes: MakeKubernetes, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = kubernetes([RUNNING] * MINUTE + [DONE])
    cluster.fake.pods = [worker(1, {"phase": "Pending"})]
    cluster.fake.events = [warning(f"{NAME}-abcde-cpu-worker-1", 'secret "milcore-s3" not found')]
    assert waits(cluster, capfd) == [
        f'worker pod {NAME}-abcde-cpu-worker-1: FailedScheduling: secret "milcore-s3" not found'
    ]


def test_a_pod_that_a_quota_refuses_is_told_by_kuberay_s_event_as_often_as_it_comes(
    kubernetes: MakeKubernetes, capfd: pytest.CaptureFixture[str]
) -> None:
    """There is no such pod; the event is the cluster's, with the name of another pod each time."""
    cluster = kubernetes([RUNNING] * 2 * MINUTE + [DONE])
    refused = [QUOTA.format(f"{NAME}-abcde", f"{NAME}-abcde-cpu-worker-{k}") for k in range(3)]
    cluster.fake.events = [
        {**warning(f"{NAME}-abcde", text, f"2026-01-01T00:00:0{k}Z"), "reason": "FailedToCreateWorkerPod"}
        for k, text in enumerate(refused)
    ]
    assert waits(cluster, capfd) == [f"FailedToCreateWorkerPod: {refused[2]}"]


def test_pods_that_run_or_are_another_job_s_are_not_waited_for(
    kubernetes: MakeKubernetes, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = kubernetes([RUNNING] * MINUTE + [DONE])
    cluster.fake.pods = [worker(1, ready()), pod(f"{NAME}0-abcde-worker-1", WORKER, **unscheduled(NO_MEMORY))]
    cluster.fake.events = [warning(f"{NAME}-abcde-cpu-worker-1", "Readiness probe failed")]
    assert waits(cluster, capfd) == []


def test_a_job_that_gets_no_worker_fails_with_the_reason(kubernetes: MakeKubernetes) -> None:
    """The driver itself waits longer, since it cannot know the reason."""
    cluster = kubernetes([RUNNING])
    cluster.fake.pods = [worker(1, unscheduled(NO_MEMORY))]
    line = f"had no worker for 180 s .*: worker pod {NAME}-abcde-cpu-worker-1: Unschedulable: {re.escape(NO_MEMORY)}$"
    with pytest.raises(ClusterError, match=line):
        cluster.launch(profile=ClusterProfile(pre_running_deadline_s=180))
    assert cluster.fake.created == [NAME]
    assert cluster.fake.bodies[NAME]["spec"]["entrypoint"].endswith(" --scale-up-seconds 780")


@pytest.mark.parametrize(
    ("state", "pods"),
    [(RUNNING, [worker(1, ready()), worker(2, unscheduled(NO_MEMORY))]), (status("Suspended"), [])],
    ids=["one-came", "queued"],
)
def test_a_job_with_a_worker_or_in_a_queue_goes_on(
    kubernetes: MakeKubernetes, state: dict[str, Any], pods: list[Any]
) -> None:
    cluster = kubernetes([state] * 5 * MINUTE + [DONE])
    cluster.fake.pods = pods
    cluster.launch(profile=ClusterProfile(pre_running_deadline_s=180))


def test_what_kubernetes_says_is_told_without_secrets(
    kubernetes: MakeKubernetes, capfd: pytest.CaptureFixture[str]
) -> None:
    refused = "GET https://r/v2?X-Amz-Signature=abcdef123 with AKIAIOSFODNN7EXAMPLE \x1b[31mdenied"
    cluster = kubernetes([RUNNING] * 2 * MINUTE + [DONE])
    cluster.fake.pods = [worker(1, unscheduled(refused))]
    cluster.fake.events = [warning(NAME, refused)]
    hidden = "GET https://r/v2?*** with *** denied"
    first, second = waits(cluster, capfd)[:2]
    assert first.endswith(f"Unschedulable: {hidden}")
    assert second == f"FailedScheduling: {hidden}"
