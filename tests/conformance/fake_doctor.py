"""The doctor on a fake API: a namespace that works, in which one thing is broken."""

from collections.abc import Callable

from kubernetes import client

from milcore.cluster.doctor.api_server import ApiServer
from milcore.cluster.doctor.finding import Finding
from milcore.cluster.doctor.installation import cluster_findings
from milcore.cluster.jobs.profile import ClusterProfile
from milcore.cluster.jobs.rayjob_spec import JobRequest, rayjob_spec
from tests.cluster.doctor.kubernetes_api import FakeCluster, Pod, in_namespace
from tests.cluster.http_api import serving
from tests.conformance.case import Clock, expect
from tests.conformance.recordings import IMAGE, POD_QUOTA, SECRET

SPEC = rayjob_spec(JobRequest("r", "train", ("train", "f"), 1, use_gpu=False), ClusterProfile(), "milcore")
SMALL = {"metadata": {"name": "conformance"}, "spec": {"hard": {"requests.memory": "6Gi"}}, "status": {"used": {}}}


def findings(fake: FakeCluster) -> list[Finding]:
    with serving(fake) as address:
        api = ApiServer(client.ApiClient(client.Configuration(host=address)), "mil")
        return list(cluster_findings(api, "", None, wait_s=1.0))


def well(_: None, clock: Clock) -> str:
    fake = FakeCluster(SPEC)
    of_cluster = findings(fake)
    clock.step("checked")
    faults = [f"{each.check}: {each.text}" for each in of_cluster if each.state != "ok"]
    expect(not faults, "; ".join(faults))
    expect(not fake.jobs, f"left behind: {list(fake.jobs)}")
    return f"{len(of_cluster)} ok, nothing left behind"


def quota(_: None, clock: Clock) -> str:
    def change(fake: FakeCluster) -> None:
        fake.answers[in_namespace("resourcequotas")] = (200, {"items": [SMALL]})
        fake.pods[0] = None
        fake.events.append(POD_QUOTA.value)

    return _failures(change, clock, {"quota": "conformance does not hold a head and one worker",
                                     "pod": "exceeded quota: conformance"})  # fmt: skip


def image(_: None, clock: Clock) -> str:
    def change(fake: FakeCluster) -> None:
        fake.pods[0] = Pod({"waiting": IMAGE.value})

    return _failures(change, clock, {"pod": "ImagePullBackOff: Back-off pulling image"})


def secret(_: None, clock: Clock) -> str:
    def change(fake: FakeCluster) -> None:
        fake.answers.pop(in_namespace("secrets", "milcore-s3"))
        fake.pods[0] = Pod({"waiting": SECRET.value})

    return _failures(change, clock, {"Secret milcore-s3": "not there", "pod": "CreateContainerConfigError"})


def right(_: None, clock: Clock) -> str:
    def change(fake: FakeCluster) -> None:
        fake.denied_rights.add(("create", "rayjobs"))

    return _failures(change, clock, {"rights": "you may not create rayjobs.ray.io"})


def _failures(change: Callable[[FakeCluster], object], clock: Clock, expected: dict[str, str]) -> str:
    """Exactly these checks fail, in these words."""
    fake = FakeCluster(SPEC)
    change(fake)
    failures = {each.check: each.text for each in findings(fake) if each.state == "failure"}
    clock.step("checked")
    seen = "; ".join(f"{check}: {text}" for check, text in failures.items()) or "no failure"
    expect(failures.keys() == expected.keys(), seen)
    expect(all(words in failures[check] for check, words in expected.items()), seen)
    expect(not fake.jobs, f"left behind: {list(fake.jobs)}")
    return seen
