"""The RayJob that the launcher makes: what KubeRay demands of it, and what a platform team does."""

import copy
import re
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _get_num_gpus

from milcore.cluster.jobs.profile import ClusterProfile, Nodes, read_profile
from milcore.cluster.jobs.rayjob_spec import JobRequest, Owner, job_key, rayjob, rayjob_spec, spec_digest
from milcore.config import LaunchConfig
from milcore.errors import InputError
from tests.k8s.conftest import violations

REQUEST = JobRequest("run", "train", ("train", "s3://b/run"), 6, use_gpu=False)
FULL = ClusterProfile(
    image_pull_policy="Always", image_pull_secrets=("registry",), queue="team", priority_class="low",
    head_node_selector={"pool": "cpu"},
    gpu_nodes=Nodes(gpus=2, node_selector={"pool": "gpu"}, tolerations=({"key": "gpu", "operator": "Exists"},)),
)  # fmt: skip
SPOT = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
# parts of GPUs on spot nodes, whose pods need NVIDIA's runtime by name
PARTS = ClusterProfile(
    gpu_nodes=Nodes(gpus=3, gpu_resource="nvidia.com/mig-1g.10gb", runtime_class="nvidia", tolerations=(SPOT,))
)
CASES = {
    "defaults": (REQUEST, ClusterProfile()),
    "everything": (REQUEST._replace(use_gpu=True), FULL),
    "parts of GPUs": (REQUEST._replace(use_gpu=True), PARTS),
}


def made(request: JobRequest, profile: ClusterProfile) -> dict[str, Any]:
    spec = rayjob_spec(request, profile, "registry/milcore:1")
    return rayjob(f"{job_key(request)}-r0", request, spec, profile, Owner("pod", "uid"))


@pytest.fixture(params=CASES)
def job(request: pytest.FixtureRequest) -> dict[str, Any]:
    return made(*CASES[request.param])


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [job["spec"]["submitterPodTemplate"], *(group["template"] for group in groups)]


def test_its_nodes_know_that_they_are_remote(job: dict[str, Any]) -> None:
    """What data may name is decided by it."""
    for pod in pods(job)[1:]:
        assert {"name": "MILCORE_REMOTE", "value": "1"} in pod["spec"]["containers"][0]["env"]


def test_kuberay_s_schema_takes_it(job: dict[str, Any], rayjob_schema: Any) -> None:
    assert [error.message for error in rayjob_schema.iter_errors(job)] == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("spec", "activeDeadlineSecond"), 5),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "1"),
        (("spec", "submitterPodTemplate", "spec", "containers", 0, "imagePullPolcy"), "Always"),
    ],
)
def test_the_schema_refuses_a_wrong_key_or_type(path: tuple[Any, ...], wrong: object, rayjob_schema: Any) -> None:
    place = job = copy.deepcopy(made(*CASES["defaults"]))
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    assert len(list(rayjob_schema.iter_errors(job))) == 1


def test_what_kuberay_s_controller_demands_beyond_its_schema(job: dict[str, Any]) -> None:
    name = job["metadata"]["name"]
    assert re.fullmatch(r"mil-train-[0-9a-f]{10}-r0", name)
    assert len(name) <= 47
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0
    assert spec["submitterConfig"]["backoffLimit"] == 2
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_head_takes_no_work(job: dict[str, Any]) -> None:
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0"}


def test_no_secret_is_in_it_but_by_reference(job: dict[str, Any]) -> None:
    for pod in pods(job)[1:]:
        env = {one["name"]: one for one in pod["spec"]["containers"][0]["env"]}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert env[name] == {"name": name, "valueFrom": {"secretKeyRef": {"name": "milcore-s3", "key": name}}}
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_every_pod_passes_pod_security_restricted_and_istio_leaves_it_alone(job: dict[str, Any]) -> None:
    for pod in pods(job):
        assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
        assert violations(pod["spec"]) == []
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"].keys() == {"requests", "limits"}


def test_nodes_come_when_needed_but_all_at_once_from_a_queue() -> None:
    bounds = []
    for request, profile in CASES.values():
        (group,) = rayjob_spec(request, profile, "i")["rayClusterSpec"]["workerGroupSpecs"]
        bounds.append((group["groupName"], group["minReplicas"], group["replicas"], group["maxReplicas"]))
    assert bounds == [("cpu", 0, 0, 2), ("gpu", 3, 3, 3), ("gpu", 0, 0, 2)]
    job = made(*CASES["everything"])
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]


def test_only_an_autoscaling_head_gets_a_token_of_the_kubernetes_api() -> None:
    for (request, profile), expected in zip(CASES.values(), (True, False, True), strict=True):
        mounts = [pod["spec"]["automountServiceAccountToken"] for pod in pods(made(request, profile))]
        assert mounts == [False, expected, False]


def test_gpu_workers_ask_for_gpus_where_they_are() -> None:
    *_, pod = pods(made(*CASES["everything"]))
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert pod["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["spec"]["priorityClassName"] == "low"
    assert "runtimeClassName" not in pod["spec"]


def test_parts_of_gpus_are_asked_for_by_their_name_and_ray_is_given_their_number() -> None:
    job = made(*CASES["parts of GPUs"])
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    head, pod = pods(job)[1:]
    resources = pod["spec"]["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/mig-1g.10gb": "3"}
    # by the resource's name alone Ray's autoscaler finds no GPU in this pod
    assert group["rayStartParams"] == {"num-gpus": "3"}
    assert pod["spec"]["runtimeClassName"] == "nvidia"
    assert pod["spec"]["tolerations"] == [SPOT]
    assert head["spec"].keys().isdisjoint({"runtimeClassName", "tolerations"})


def test_ray_s_autoscaler_counts_the_gpus_of_a_group() -> None:
    """Ray's own reading of a group, for each kind of node."""
    counts = []
    for job in map(made, *zip(*CASES.values(), strict=True)):
        (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        container = group["template"]["spec"]["containers"][0]
        counts.append(_get_num_gpus({}, group["rayStartParams"], container["resources"], group["groupName"]))
    assert counts == [None, 2, 3]


def test_more_workers_than_the_profile_has_room_for() -> None:
    with pytest.raises(
        InputError, match="workers: expected at most 16, got 17, which need 5 nodes of 4; allowed: max_nodes 4"
    ):
        rayjob_spec(REQUEST._replace(workers=17), ClusterProfile(), "i")


def test_equal_specs_have_equal_digests_and_names_differ_by_run_step_and_folder() -> None:
    one, other = (rayjob_spec(REQUEST, ClusterProfile(), image) for image in ("i", "j"))
    assert spec_digest(one) == spec_digest(copy.deepcopy(one)) != spec_digest(other)
    requests = [REQUEST, REQUEST._replace(run_id="b"), REQUEST._replace(arguments=("train", "s3://b/other"))]
    assert len({job_key(request) for request in requests}) == 3


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "cluster_profile: expected a file, got nothing at"),
        ("[1, 2]", "cluster_profile: expected a mapping, got a list in "),
        ("a: [", "cluster_profile: expected YAML or JSON, got "),
        ("head_cpu: 2", "head_cpu: expected a setting, got 'head_cpu'; allowed: image, "),
        ("queue: Team Queue", "queue: expected pattern"),
        ("gpu_nodes: {gpu_resource: gpu}", "gpu_nodes.gpu_resource: expected pattern"),
    ],
)
def test_a_bad_profile_is_refused_in_one_line(text: str | None, line: str, tmp_path: Any) -> None:
    file = tmp_path / "profile.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=re.escape(line)) as caught:
        read_profile(LaunchConfig(cluster_profile=str(file)))
    assert "\n" not in str(caught.value)


def test_a_profile_is_yaml(tmp_path: Any) -> None:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"queue": "team", "cpu_nodes": {"cpus": 8}}))
    profile = read_profile(LaunchConfig(cluster_profile=str(tmp_path / "p.yaml")))
    assert (profile.queue, profile.cpu_nodes.cpus, profile.head_cpus) == ("team", 8, 2)
