"""The manifests and the image file, checked without a cluster."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import milcore
from milcore.cluster.jobs.profile import ClusterProfile
from milcore.config import parse_config
from tests.k8s.conftest import violations

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
BASE = K8S / "base"
PLACES = ("base", "overlays/local", "overlays/gpu", "overlays/kubeflow-profile")
SECRETS_IN_TEXT = re.compile(
    r"(?i)(AKIA[0-9A-Z]{12}|BEGIN [A-Z ]*PRIVATE KEY|(password|secret|token)\w*\s*[=:]\s*\w{8})"
)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def containers(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for pod in pods(cluster):
        yield from pod["containers"]


def pods(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    yield from (group["template"]["spec"] for group in groups)


def references(node: Any, kind: str) -> set[tuple[str, str]]:
    """Every (name, key) that is read from a Secret or a ConfigMap anywhere below the node."""
    if isinstance(node, list):
        return set().union(*(references(inner, kind) for inner in node))
    if not isinstance(node, dict):
        return set()
    own = {(node[kind]["name"], node[kind]["key"])} if kind in node else set()
    return own.union(*(references(inner, kind) for inner in node.values()))


@pytest.fixture
def kustomization() -> dict[str, Any]:
    (document,) = documents(BASE / "kustomization.yaml")
    return document


@pytest.fixture
def cluster() -> dict[str, Any]:
    (document,) = documents(BASE / "raycluster.yaml")
    return document


def test_the_base_lists_exactly_its_files(kustomization: dict[str, Any]) -> None:
    there = {path.name for path in BASE.iterdir()} - {"kustomization.yaml"}
    assert sorted(kustomization["resources"]) == sorted(there)


def test_every_document_is_a_named_object() -> None:
    for path in sorted(K8S.rglob("*.yaml")):
        for document in documents(path):
            assert {"apiVersion", "kind"} <= document.keys(), path
            assert document["kind"] in {"Kustomization", "Component"} or document["metadata"]["name"].startswith(
                "milcore"
            ), path


def test_the_raycluster_has_no_key_or_type_the_crd_does_not_know(
    raycluster_schema: Any, cluster: dict[str, Any]
) -> None:
    assert [error.message for error in raycluster_schema.iter_errors(cluster)] == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("spec", "rayVersoin"), "2.60.0"),
        (("spec", "workerGroupSpecs", 0, "maxReplicas"), "4"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "imagePullPolcy"), "Always"),
        (("spec", "workerGroupSpecs", 1, "template", "spec", "tolerations", 0, "efect"), "NoSchedule"),
    ],
)
def test_the_schema_check_catches_a_wrong_key_or_type(
    raycluster_schema: Any, cluster: dict[str, Any], path: tuple[Any, ...], wrong: str
) -> None:
    place = cluster
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = wrong
    assert [
        str(path[-1]) in f"{error.message} {error.json_path}" for error in raycluster_schema.iter_errors(cluster)
    ] == [True]


def test_one_place_holds_the_image_tag_and_it_is_the_version(
    kustomization: dict[str, Any], cluster: dict[str, Any]
) -> None:
    assert kustomization["images"] == [{"name": "milcore", "newTag": milcore.__version__}]
    assert {container["image"] for container in containers(cluster)} == {"milcore"}


def test_the_cluster_and_the_image_know_that_they_are_remote(cluster: dict[str, Any]) -> None:
    """What data may name is decided by it."""
    for container in containers(cluster):
        assert {"name": "MILCORE_REMOTE", "value": "1"} in container["env"]
    assert "\nENV MILCORE_REMOTE=1\n" in (K8S / "image" / "Dockerfile").read_text()


def test_the_cluster_runs_the_pinned_ray(cluster: dict[str, Any]) -> None:
    assert f"ray=={cluster['spec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def kubectl() -> str:
    command = shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("no kubectl here; `make kubectl` installs one")
    return command


@functools.cache
def rendered(kubectl: str, place: str) -> list[dict[str, Any]]:
    ended = subprocess.run([kubectl, "kustomize", str(K8S / place)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return list(yaml.safe_load_all(ended.stdout))


def test_kustomize_renders_every_container_with_tag_and_settings(kubectl: str, cluster: dict[str, Any]) -> None:
    (made,) = [one for one in rendered(kubectl, "base") if one["kind"] == "RayCluster"]
    for one, source in zip(containers(made), containers(cluster), strict=True):
        assert one == {**source, "image": f"milcore:{milcore.__version__}"}


@pytest.mark.parametrize("place", PLACES)
def test_what_kustomize_renders_is_valid(kubectl: str, place: str, raycluster_schema: Any) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in rendered(kubectl, place):
        if document["kind"] == "RayCluster":
            assert [error.message for error in raycluster_schema.iter_errors(document)] == []
            assert {container["image"].partition("-")[0] for container in containers(document)} == {
                f"milcore:{milcore.__version__}"
            }
        else:
            validate(document, "1.34", strict=True)


@pytest.mark.parametrize("place", PLACES)
def test_every_overlay_s_profile_is_one(kubectl: str, place: str) -> None:
    (profile,) = [one for one in rendered(kubectl, place) if one["metadata"]["name"] == "milcore-profile"]
    parse_config(ClusterProfile, yaml.safe_load(profile["data"]["profile.yaml"]))


def test_the_base_s_profile_says_the_defaults() -> None:
    (profile,) = documents(BASE / "profile.yaml")
    assert parse_config(ClusterProfile, yaml.safe_load(profile["data"]["profile.yaml"])) == ClusterProfile()


def test_the_launcher_s_rights_reach_whom_steps_run_as(kubectl: str) -> None:
    local, profile = rendered(kubectl, "overlays/local"), rendered(kubectl, "overlays/kubeflow-profile")
    (binding,) = [one for one in local if one["kind"] == "RoleBinding"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"}]
    assert binding["roleRef"]["name"] in {one["metadata"]["name"] for one in local if one["kind"] == "Role"}
    (role,) = [one for one in profile if one["kind"] == "ClusterRole"]
    assert role["metadata"]["labels"]["rbac.authorization.kubeflow.org/aggregate-to-kubeflow-edit"] == "true"
    assert not [one for one in profile if one["kind"] in {"Role", "RoleBinding"}]


def test_every_pod_passes_pod_security_restricted_and_writes_to_scratch_space_only(cluster: dict[str, Any]) -> None:
    autoscaler = {"name": "autoscaler", **cluster["spec"]["autoscalerOptions"]}
    head, *workers = pods(cluster)
    for pod in ({**head, "containers": [*head["containers"], autoscaler]}, *workers):
        assert violations(pod) == []
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"].keys() == {"requests", "limits"}
        writable = {mount["mountPath"] for one in pod["containers"] for mount in one["volumeMounts"]}
        assert writable == {"/tmp", "/dev/shm"}  # noqa: S108 - mounts of a pod


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v"),
        ({"securityContext": {}}, "ray-head: runAsNonRoot"),
        ({"containers": [{"name": "c", "securityContext": {"privileged": True}}]}, "c: privileged"),
        ({"containers": [{"name": "c", "securityContext": {"runAsUser": 0}}]}, "c: runAsUser"),
        ({"initContainers": [{"name": "c"}]}, "c: capabilities"),
    ],
)
def test_the_pod_security_check_catches_a_pod_that_is_not_restricted(
    cluster: dict[str, Any], change: dict[str, Any], violation: str
) -> None:
    assert violation in violations({**next(pods(cluster)), **change})


def test_idle_costs_the_head_alone_which_takes_no_work(cluster: dict[str, Any]) -> None:
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    assert {group["minReplicas"] for group in cluster["spec"]["workerGroupSpecs"]} == {0}


def test_only_the_head_gets_a_token_of_the_kubernetes_api(cluster: dict[str, Any]) -> None:
    (account,) = documents(BASE / "serviceaccount.yaml")
    assert account["automountServiceAccountToken"] is False
    assert [pod.get("automountServiceAccountToken", False) for pod in pods(cluster)] == [True, False, False]
    assert {pod["serviceAccountName"] for pod in pods(cluster)} == {account["metadata"]["name"]}


def test_what_the_pods_read_is_what_the_example_and_the_base_name(cluster: dict[str, Any]) -> None:
    secrets = documents(K8S / "secret.example.yaml")
    named = {(one["metadata"]["name"], key) for one in secrets for key in one["stringData"]}
    assert references(cluster, "secretKeyRef") == named
    (storage,) = documents(BASE / "storage.yaml")
    assert references(cluster, "configMapKeyRef") == {(storage["metadata"]["name"], key) for key in storage["data"]}


def test_no_secret_is_in_the_files() -> None:
    for one in documents(K8S / "secret.example.yaml"):
        assert {value for key, value in one["stringData"].items() if key != "auth_mode"} == {""}
    for path in [*K8S.rglob("*.yaml"), K8S / "image" / "Dockerfile"]:
        assert SECRETS_IN_TEXT.search(path.read_text()) is None, path
    assert SECRETS_IN_TEXT.search("AWS_SECRET_ACCESS_KEY=abcdefgh") is not None


def test_the_network_policy_names_this_cluster_and_opens_the_dashboard_to_steps(cluster: dict[str, Any]) -> None:
    policy, _ = documents(BASE / "networkpolicy.yaml")
    own_pods = {"matchLabels": {"ray.io/cluster": cluster["metadata"]["name"]}}
    assert policy["spec"]["podSelector"] == own_pods
    among_themselves, from_steps = policy["spec"]["ingress"]
    assert among_themselves == {"from": [{"podSelector": own_pods}]}
    assert from_steps["ports"] == [{"protocol": "TCP", "port": 8265}]


def test_the_image_is_built_from_what_the_context_lets_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (.*) \S+$", (K8S / "image" / "Dockerfile").read_text(), re.MULTILINE)
    # the argument LOCK, whose default is one of them
    sources = {source.replace("${LOCK}", "k8s/image/*.lock") for line in copies for source in line.split()}
    assert sources == let_through
    assert all(list(ROOT.glob(name)) for name in let_through)


def test_the_overlay_of_kuberay_s_namespace_changes_what_admits_it_from_everywhere() -> None:
    """Of pods with the operator's label, only those of the namespace that the overlay names."""
    (component,) = documents(K8S / "overlays/kuberay-namespace/kustomization.yaml")
    (patch,) = component["patches"]
    (change,) = yaml.safe_load(patch["patch"])
    *_, policy = documents(BASE / "networkpolicy.yaml")
    assert patch["target"] == {"kind": policy["kind"], "name": policy["metadata"]["name"]}
    assert (change["op"], change["path"]) == ("replace", "/spec/ingress/1/from/0/namespaceSelector")
    peer = policy["spec"]["ingress"][1]["from"][0]
    assert peer["namespaceSelector"] == {}
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "kuberay-operator"}
    assert list(change["value"]["matchLabels"]) == ["kubernetes.io/metadata.name"]


@pytest.mark.parametrize("place", PLACES)
def test_kuberay_s_namespace_can_be_named_on_every_overlay(kubectl: str, place: str, tmp_path: Path) -> None:
    way = os.path.relpath(K8S, tmp_path)
    overlay = {"resources": [f"{way}/{place}"], "components": [f"{way}/overlays/kuberay-namespace"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    (policy,) = [one for one in rendered(kubectl, str(tmp_path)) if one["metadata"]["name"] == "milcore-rayjob"]
    _, of_kuberay = policy["spec"]["ingress"]
    (peer,) = of_kuberay["from"]
    assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}
    assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
