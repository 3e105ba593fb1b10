"""Each fault of a cluster is one finding that says what to do; a right that is missing is a warning that names it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from milcore.cluster.doctor.api_server import METADATA_ONLY, ApiServer
from milcore.cluster.doctor.autoscaler import AUTOSCALERS
from milcore.cluster.doctor.diagnosis import Surroundings, diagnose
from milcore.cluster.doctor.finding import Finding
from milcore.cluster.doctor.installation import cluster_findings, operator_finding, unknown_fields
from milcore.cluster.doctor.pod_job import job_body
from milcore.cluster.jobs.kubernetes import connect
from milcore.cluster.jobs.profile import ClusterProfile
from milcore.cluster.jobs.rayjob_spec import COMMON_LABELS, JobRequest, rayjob_spec
from milcore.errors import ClusterError, InputError
from tests.cluster.doctor.kubernetes_api import (
    JOBS,
    LISTENING,
    PODS,
    READ,
    FakeCluster,
    Pod,
    forbidden,
    in_namespace,
    node,
    operator,
    rayjob_document,
    schema_of,
    with_keys,
)
from tests.cluster.http_api import kubeconfig as as_kubeconfig
from tests.cluster.http_api import serving, status
from tests.k8s.conftest import violations

SPEC = rayjob_spec(JobRequest("r", "train", ("train", "f"), 1, use_gpu=False), ClusterProfile(), "milcore")
OLDER = schema_of({key: value for key, value in SPEC.items() if key != "preRunningDeadlineSeconds"})


def findings_of(fake: FakeCluster, uri: str | None = None, profile: str = "") -> list[Finding]:
    with serving(fake) as address:
        api = ApiServer(client.ApiClient(client.Configuration(host=address)), "mil")
        return list(cluster_findings(api, profile, uri, wait_s=1.0))


def faults(findings: list[Finding]) -> list[Finding]:
    return [each for each in findings if each.state != "ok"]


def broken(change: Callable[[FakeCluster], object]) -> list[Finding]:
    fake = FakeCluster(SPEC)
    change(fake)
    findings = faults(findings_of(fake))
    assert fake.jobs == {}
    assert all(each.remedy for each in findings)
    return findings


def answer(path: str, body: Any, code: int = 200) -> Callable[[FakeCluster], object]:
    return lambda fake: fake.answers.update({path: (code, body)})


def absent(path: str) -> Callable[[FakeCluster], object]:
    return lambda fake: fake.answers.pop(path)


def first_pod(pod: Pod | None) -> Callable[[FakeCluster], object]:
    return lambda fake: fake.pods.__setitem__(0, pod)


TAINT = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
GPU_NODE = node("gpu-a", "8", "64Gi", allocatable={"nvidia.com/gpu": "1"}, spec={"taints": [TAINT]})


def without(verb: str, resource: str) -> Callable[[FakeCluster], object]:
    return lambda fake: fake.denied_rights.add((verb, resource))


def second_pod(pod: Pod) -> Callable[[FakeCluster], object]:
    return lambda fake: fake.pods.__setitem__(1, pod)


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {"items": [{"metadata": {"name": "team"}, "spec": {"hard": hard, **spec}, "status": {"used": used or {}}}]}


def limits(**limit: Any) -> dict[str, Any]:
    return {"items": [{"metadata": {"name": "bounds"}, "spec": {"limits": [limit]}}]}


def test_a_cluster_that_works_is_ok_and_left_as_it_was() -> None:
    fake = FakeCluster(SPEC)
    findings = findings_of(fake, "s3://lab/store")
    assert faults(findings) == []
    assert [each.check for each in findings] == [
        "API", "namespace", "KubeRay's resources", "KubeRay", "rights", "cluster profile", "Secret milcore-s3",
        "Secret milcore-ray", "ConfigMap milcore-storage", "network policy", "room for the head",
        "room for the worker", "room for the GPU worker", "quota", "limit range", "pod", "reach from a pod",
        "network policy enforced",
    ]  # fmt: skip
    assert fake.jobs == {}
    assert [job["spec"]["template"]["spec"]["containers"][0]["command"][3:] for job in fake.created] == [
        ["--listen", "s3://lab/store"], ["--reach", "10.1.2.3"]
    ]  # fmt: skip


def test_a_line_of_a_pod_that_is_not_whole_yet_is_left_for_later() -> None:
    fake = FakeCluster(SPEC)
    fake.pods[0] = Pod({"running": {}}, READ, LISTENING, '{"check": "re')
    assert faults(findings_of(fake)) == []


def test_another_server_is_no_kubernetes_api() -> None:
    (finding,) = broken(answer("/version", "<html>"))
    assert (finding.check, finding.text.partition(" ")[2]) == ("API", "answers, but not as a Kubernetes API does")


def test_no_value_of_a_secret_is_asked_for() -> None:
    fake = FakeCluster(SPEC)
    findings_of(fake)
    asked = [accept for path, accept in fake.accepted.items() if "/secrets" in path]
    assert asked == [METADATA_ONLY] * 2


UNREACHABLE = {**READ, "state": "failure", "text": "nothing answers", "remedy": "set AWS_ENDPOINT_URL"}
# kubelet: pkg/kubelet/images/types.go, pkg/kubelet/kubelet_pods.go; scheduler: framework/types.go FitError
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                 "message": "0/1 nodes are available: 1 Insufficient memory."}  # fmt: skip


def waiting(reason: str, message: str) -> Pod:
    return Pod({"waiting": {"reason": reason, "message": message}})


@pytest.mark.parametrize(
    ("change", "check", "text", "remedy"),
    [
        (answer("/version", status(401, "Unauthorized", "Unauthorized"), 401), "API", "answers 401", "kubeconfig"),
        (absent("/api/v1/namespaces/mil"), "namespace", "there is no namespace mil", "--namespace"),
        (absent("/apis/ray.io/v1"), "KubeRay's resources", "no rayclusters and no rayjobs", "install the KubeRay"),
        (
            answer("/openapi/v3/apis/ray.io/v1", rayjob_document(OLDER)),
            "KubeRay's resources", "has no spec.preRunningDeadlineSeconds", "KubeRay operator 1.7",
        ),
        (answer("/api/v1/pods", {"items": []}), "KubeRay", "none running", "install or start"),
        (answer("/api/v1/pods", {"items": [operator("kuberay/operator:v1.4.2")]}), "KubeRay", "older than 1.7", "upg"),
        (without("create", "rayjobs"), "rights", "you may not create rayjobs.ray.io", "Role"),
        (without("get", "pods/log"), "rights", "you may not get pods/log", "Role"),
        (absent(in_namespace("secrets", "milcore-s3")), "Secret milcore-s3", "not there", "secret.example.yaml"),
        (
            answer(in_namespace("secrets", "milcore-s3"), with_keys("AWS_ACCESS_KEY_ID")),
            "Secret milcore-s3", "lacks AWS_SECRET_ACCESS_KEY", "secret.example.yaml",
        ),
        (
            answer(in_namespace("configmaps", "milcore-storage"), with_keys("AWS_DEFAULT_REGION")),
            "ConfigMap milcore-storage", "lacks AWS_ENDPOINT_URL", "k8s/base",
        ),
        (
            answer(in_namespace("configmaps", "milcore-profile"), {"data": {"profile.yaml": "head_cpu: 2"}}),
            "cluster profile", "head_cpu", "apply it again",
        ),
        (
            answer(in_namespace("configmaps", "milcore-profile"), {"data": {"profile.yaml": "a: [1"}}),
            "cluster profile", "expected YAML", "apply it again",
        ),
        (
            absent(in_namespace("networkpolicies", "milcore-rayjob", "apis/networking.k8s.io/v1")),
            "network policy", "milcore-rayjob is not there", "k8s/base",
        ),
        (
            answer("/api/v1/nodes", {"items": [node(memory="12Gi"), GPU_NODE]}),
            "room for the worker", "node-a: 12 GiB memory; gpu-a: taint nvidia.com/gpu", "lower the sizes",
        ),
        (
            answer(in_namespace("resourcequotas"), quota({"requests.cpu": "10"}, {"requests.cpu": "8"})),
            "quota", "team does not hold a head and one worker: requests.cpu 2 left of 6.3 needed", "larger quota",
        ),
        (
            answer(in_namespace("limitranges"), limits(type="Container", max={"memory": "8Gi"}, min={"cpu": "100m"})),
            "limit range", "bounds: worker asks for 16 GiB memory; allowed: max 8 GiB", "cluster profile",
        ),
        (first_pod(waiting("ErrImagePull", "not found")), "pod", "ErrImagePull: not found", "push the image"),
        (
            first_pod(waiting("CreateContainerConfigError", "couldn't find key AWS_DEFAULT_REGION in ConfigMap mil/s")),
            "pod", "couldn't find key AWS_DEFAULT_REGION", "with all their keys",
        ),
        (first_pod(Pod({}, conditions=(UNSCHEDULABLE,))), "pod", "Unschedulable: 0/1 nodes are avail", "get events"),
        (
            first_pod(Pod({"terminated": {"exitCode": 1, "reason": "Error"}},
                          "ModuleNotFoundError: No module named 'milcore.cluster.doctor'")),
            "pod", "the image has another milcore", "build and push it anew",
        ),
        (
            first_pod(Pod({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})),
            "pod", "ended with code 137 (OOMKilled)", "this milcore",
        ),
        (
            first_pod(Pod({"running": {}}, UNREACHABLE, LISTENING)),
            "reach from a pod", "nothing answers", "AWS_ENDPOINT_URL",
        ),
        (
            second_pod(Pod({"terminated": {"exitCode": 0}}, {"reached": True})),
            "network policy enforced", "reaches the dashboard's port", "enforces NetworkPolicy",
        ),
    ],
)  # fmt: skip
def test_a_fault_is_one_failure_with_what_to_do(
    change: Callable[[FakeCluster], object], check: str, text: str, remedy: str
) -> None:
    failures = [each for each in broken(change) if each.state == "failure"]
    assert {each.check for each in failures} == {check}
    assert text in failures[0].text
    assert remedy in failures[0].remedy


@pytest.mark.parametrize(
    "message",
    [
        # controller_utils.go with the quota plugin, the service account plugin and PodSecurity admission
        'Error creating: pods "d" is forbidden: exceeded quota: team, requested: pods=1, used: pods=5, limited: pods=5',
        'Error creating: pods "d" is forbidden: error looking up service account mil/milcore-ray: not found',
        'Error creating: pods "d" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
    ],
)
def test_a_pod_that_kubernetes_refuses_is_a_failure_with_its_reason(message: str) -> None:
    def change(fake: FakeCluster) -> None:
        fake.pods[0] = None
        fake.events.append({"reason": "FailedCreate", "message": message})

    (finding,) = broken(change)
    assert (finding.check, finding.text) == ("pod", f"refused: {message}")


@pytest.mark.parametrize(
    ("path", "check", "right"),
    [
        ("/api/v1/namespaces/mil", "namespace", "get namespaces"),
        ("/api/v1/pods", "KubeRay", "list pods in the whole cluster"),
        (in_namespace("configmaps", "milcore-profile"), "cluster profile", "get configmaps"),
        (in_namespace("secrets", "milcore-s3"), "Secret milcore-s3", "get secrets"),
        (in_namespace("configmaps", "milcore-storage"), "ConfigMap milcore-storage", "get configmaps"),
        (
            in_namespace("networkpolicies", "milcore-rayjob", "apis/networking.k8s.io/v1"),
            "network policy", "get networkpolicies.networking.k8s.io",
        ),
        ("/api/v1/nodes", "room for pods", "list nodes in the whole cluster"),
        (in_namespace("resourcequotas"), "quota", "list resourcequotas"),
        (in_namespace("limitranges"), "limit range", "list limitranges"),
        (JOBS, "pod", "create jobs.batch"),
        (PODS, "pod", "list pods"),
    ],
)  # fmt: skip
def test_what_the_caller_may_not_read_is_a_warning_that_names_the_right(path: str, check: str, right: str) -> None:
    (finding,) = broken(answer(path, forbidden(path), 403))
    assert (finding.check, finding.state) == (check, "warning")
    place = "" if "whole cluster" in right else " in namespace mil"
    assert finding.text == f"not checked: you lack the right to {right}{place}"


@pytest.mark.parametrize(
    ("change", "check", "text"),
    [
        (absent(in_namespace("configmaps", "milcore-profile")), "cluster profile", "steps take the defaults"),
        (absent(in_namespace("secrets", "milcore-ray")), "Secret milcore-ray", "not there"),
        (answer(in_namespace("secrets", "milcore-s3"), {"metadata": {}}), "Secret milcore-s3", "names of its keys"),
        (absent("/openapi/v3/apis/ray.io/v1"), "KubeRay's resources", "fields cannot be read"),
        (answer("/api/v1/nodes", {"items": [node()]}), "room for the GPU worker", "0 nvidia.com/gpu"),
        (
            answer(in_namespace("resourcequotas"), quota({"limits.memory": "40Gi"})),
            "quota", "holds one worker, but not the profile's max_nodes: limits.memory 40 GiB left of 73.50 GiB needed",
        ),
        (answer(in_namespace("resourcequotas"), quota({}, scopes=["BestEffort"])), "quota", "some pods only"),
        (second_pod(Pod({}, conditions=(UNSCHEDULABLE,))), "network policy enforced", "not checked"),
        (
            second_pod(Pod({"terminated": {"exitCode": 0}}, {"reached": False, "control": False})),
            "network policy enforced", "reaches neither the API server nor the object store",
        ),
        (first_pod(waiting("ContainerCreating", "")), "pod", "could not be told in"),
        (first_pod(Pod({"running": {}}, READ)), "pod", "still checks the object store"),
    ],
)  # fmt: skip
def test_what_a_run_may_survive_is_a_warning(change: Callable[[FakeCluster], object], check: str, text: str) -> None:
    (finding,) = broken(change)
    assert (finding.check, finding.state) == (check, "warning")
    assert text in finding.text


@pytest.mark.parametrize(
    ("image", "state"),
    [
        ("quay.io/kuberay/operator:v1.7.0", "ok"), ("registry:5000/operator:1.7.2", "ok"),
        ("quay.io/kuberay/operator:v1.6.1", "failure"), ("quay.io/kuberay/operator:v2.0.0", "warning"),
        ("quay.io/kuberay/operator:nightly", "warning"), ("quay.io/kuberay/operator@sha256:12", "warning"),
    ],
)  # fmt: skip
def test_the_operator_is_judged_by_its_image(image: str, state: str) -> None:
    assert operator_finding(image).state == state


def test_every_field_of_a_rayjob_is_one_of_kuberay_1_7() -> None:
    file = Path(__file__).resolve().parents[4] / "shared/crds/ray.io_rayjobs.yaml"
    if not file.is_file():
        pytest.skip("the definition of rayjobs is not beside the project")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(file.read_text(), loader)  # noqa: S506 - both are safe loaders
    schema = next(each for each in definition["spec"]["versions"] if each["name"] == "v1")["schema"]["openAPIV3Schema"]
    assert unknown_fields(SPEC, schema["properties"]["spec"]) == set()
    older = {**SPEC, "suspendd": True}
    assert unknown_fields(older, schema["properties"]["spec"]) == {"spec.suspendd"}


def test_an_api_that_does_not_answer_ends_the_checks() -> None:
    api = ApiServer(client.ApiClient(client.Configuration(host="http://127.0.0.1:1")), "mil")
    (finding,) = cluster_findings(api, "", None, wait_s=1.0)
    assert (finding.check, finding.state) == ("API", "failure")
    assert "nothing answers at http://127.0.0.1:1" in finding.text


def test_a_profile_from_a_file_is_the_one_that_is_checked(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text("s3_secret: other\ncpu_nodes: {cpus: 64}\n")
    failures = faults(findings_of(FakeCluster(SPEC), profile=str(tmp_path / "profile.yaml")))
    assert [each.check for each in failures] == ["Secret other", "room for the worker"]


def test_the_pods_are_as_those_of_ray_and_pass_podsecurity_restricted() -> None:
    ray_pod = SPEC["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for is_ray_pod in (True, False):
        job = job_body(SPEC, ["--listen"], is_ray_pod=is_ray_pod)
        template = job["spec"]["template"]
        assert violations(template["spec"]) == []
        (container,), (of_ray,) = template["spec"]["containers"], ray_pod["containers"]
        same = ("image", "env", "securityContext", "volumeMounts")
        assert {key: container[key] for key in same} == {key: of_ray[key] for key in same}
        assert (COMMON_LABELS.items() <= template["metadata"]["labels"].items()) is is_ray_pod
        assert job["spec"]["ttlSecondsAfterFinished"] > 0
        assert job["spec"]["activeDeadlineSeconds"] > 0


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[tuple[FakeCluster, Path]]:
    """A cluster, and the kubeconfig that names it."""
    fake = FakeCluster(SPEC)
    with serving(fake) as address:
        (tmp_path / "config").write_text(json.dumps(as_kubeconfig(address)))
        yield fake, tmp_path / "config"


def command(config: Path, *arguments: str) -> list[str]:
    program = f"import os; os.environ['KUBECONFIG'] = {str(config)!r}\nfrom milcore.cli.main import main; main()"
    return [sys.executable, "-c", program, "doctor", "--cluster", *arguments]


def test_the_command_ends_with_an_object_and_code_1_on_a_failure(kubeconfig: tuple[FakeCluster, Path]) -> None:
    fake, config = kubeconfig
    fake.denied_rights.add(("patch", "rayjobs"))
    ended = subprocess.run(command(config, "--json"), capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["ok"] is False
    failures = [each for each in report["findings"] if each["state"] == "failure"]
    assert [(each["area"], each["check"]) for each in failures] == [("Kubernetes, namespace mil", "rights")]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_removes_its_job(kubeconfig: tuple[FakeCluster, Path], signum: int) -> None:
    fake, config = kubeconfig
    fake.pods[0] = Pod({}, conditions=(UNSCHEDULABLE,))
    process = subprocess.Popen(command(config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ))
    while not fake.jobs and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signum)
    process.communicate()
    assert process.returncode == 128 + signum
    assert len(fake.created) == 1
    assert fake.jobs == {}


@pytest.mark.parametrize(
    "surroundings",
    [Surroundings(namespace="mil"), Surroundings(cluster_profile="p.yaml"), Surroundings(kubeflow="kubeflow.example")],
)
def test_a_place_that_cannot_be_checked_is_bad_input(surroundings: Surroundings) -> None:
    with pytest.raises(InputError, match=r"expected .* got .* allowed:"):
        diagnose(surroundings, lambda _: None)


@pytest.mark.parametrize("text", ["{a: [", "hello", "", None])
def test_a_kubeconfig_that_is_none_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    file = tmp_path / "config"
    file.mkdir() if text is None else file.write_text(text)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    with pytest.raises(ClusterError, match="give a kubeconfig"):
        connect(None)


def test_without_a_kubeconfig_the_report_has_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    report = diagnose(Surroundings(cluster=True), lambda _: None)
    (fault,) = [each for each in report.findings if each.area == "Kubernetes"]
    assert (report.ok, fault.check, fault.state) == (False, "API", "failure")
    assert "give a kubeconfig" in fault.text


@pytest.mark.parametrize("path", AUTOSCALERS.values())
def test_what_an_autoscaler_may_mend_is_a_warning_that_names_it(path: str) -> None:
    fake = FakeCluster(SPEC)
    fake.answers[path] = (200, {})
    fake.answers["/api/v1/nodes"] = (200, {"items": [node(memory="12Gi"), GPU_NODE]})
    fake.pods[0] = Pod({}, conditions=(UNSCHEDULABLE,))
    findings = faults(findings_of(fake))
    assert [(each.check, each.state) for each in findings] == [("room for the worker", "warning"), ("pod", "warning")]
    (name,) = (name for name, its in AUTOSCALERS.items() if its == path)
    assert findings[0].text.endswith(f"{name} may add one")
    assert findings[1].text.endswith(f"{name} may add a node for it")


def test_a_pod_that_no_node_group_can_hold_is_a_failure() -> None:
    def change(fake: FakeCluster) -> None:
        fake.answers[AUTOSCALERS["cluster-autoscaler"]] = (200, {})
        fake.pods[0] = Pod({}, conditions=(UNSCHEDULABLE,))
        # cluster-autoscaler: processors/status/eventing_scale_up_processor.go
        fake.events.append(
            {"reason": "NotTriggerScaleUp", "message": "pod didn't trigger scale-up: 1 max node group size reached"}
        )

    (finding,) = broken(change)
    assert (finding.check, finding.state) == ("pod", "failure")
