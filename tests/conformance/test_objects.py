"""What the cases create: overlays that kustomize renders, pods that PodSecurity admits, no secret where it is read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from milcore.cluster.jobs.profile import ClusterProfile
from milcore.config import parse_config
from milcore.store.store import PatchStore
from tests.conformance import objects
from tests.conformance.conftest import KEYS
from tests.conformance.installation import COHORT, LOCAL, OTHERS
from tests.k8s.conftest import violations
from tests.k8s.test_manifests import kubectl, rendered

__all__ = ["kubectl"]  # a fixture

SETTINGS = objects.read_settings("registry:5000/lab/milcore:7", "s3://bucket/folder/", KEYS)


def documents(kubectl: str, folder: Path, overlay: str, **options: Any) -> dict[tuple[str, str], dict[str, Any]]:
    body = objects.kustomization(folder.resolve(), overlay, "a-namespace", SETTINGS, **options)
    (folder / "kustomization.yaml").write_text(json.dumps(body))
    return {(one["kind"], one["metadata"]["name"]): one for one in rendered(kubectl, str(folder))}


@pytest.mark.parametrize("overlay", [LOCAL, *OTHERS])
def test_an_overlay_of_the_cases_has_their_namespace_image_and_store(
    kubectl: str, tmp_path: Path, overlay: str
) -> None:
    made = documents(kubectl, tmp_path, overlay)
    places = {one["metadata"].get("namespace") for (kind, _), one in made.items() if kind != "ClusterRole"}
    assert places == {"a-namespace"}
    storage = made["ConfigMap", "milcore-storage"]["data"]
    assert storage == {name: KEYS[name] for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")}
    profile = parse_config(ClusterProfile, yaml.safe_load(made["ConfigMap", "milcore-profile"]["data"]["profile.yaml"]))
    assert (profile.image, profile.cpu_nodes.max_nodes) == ("registry:5000/lab/milcore:7", 2)
    head = made["RayCluster", "milcore"]["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == "registry:5000/lab/milcore:7"


def test_the_launcher_s_rights_are_those_of_the_steps_account(kubectl: str, tmp_path: Path) -> None:
    made = documents(kubectl, tmp_path, LOCAL, standing=False, account="pipeline-runner")
    assert made["RoleBinding", "milcore-launcher"]["subjects"] == [
        {"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "a-namespace"}
    ]
    assert "RayCluster" not in {kind for kind, _ in made}
    assert "PodDisruptionBudget" not in {kind for kind, _ in made}


def test_a_step_s_pod_passes_podsecurity_restricted_and_has_what_a_launcher_is_given() -> None:
    pod = objects.step_pod("train", ("milcore", "train"), SETTINGS, "run-1", job_image="other:1")
    assert violations(pod["spec"]) == []
    assert pod["metadata"]["labels"]["workflows.argoproj.io/workflow"]
    (container,) = pod["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert {"POD_NAME", "POD_UID", "POD_NAMESPACE", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"} <= variables.keys()
    assert (variables["PIPELINE_RUN_ID"], variables["MILCORE_IMAGE"]) == ("run-1", "other:1")
    assert (container["image"], pod["spec"]["restartPolicy"]) == (SETTINGS.image, "Never")


def test_keys_are_in_the_secret_alone() -> None:
    secret, token = objects.secret_bodies(SETTINGS)
    assert secret["stringData"] == {name: KEYS[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    assert len(token["stringData"]["auth_token"]) == 64
    others = [objects.step_pod("a", ("b",), SETTINGS, "r"), objects.profiles(SETTINGS), objects.storage(SETTINGS)]
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in json.dumps(others)


def test_profiles_of_the_cases_are_profiles() -> None:
    data = objects.profiles(SETTINGS)["data"]
    made = {name: parse_config(ClusterProfile, yaml.safe_load(text)) for name, text in data.items()}
    assert made["soon.yaml"].pre_running_deadline_s == objects.PATIENCE_S
    assert made["secret.yaml"].s3_secret == objects.NO_SECRET


@pytest.mark.slow
def test_the_cohort_s_script_ends_with_a_store(tmp_path: Path) -> None:
    """In a pod its folders are on the object store, and a manifest names slides beside it."""
    store = f"{tmp_path}/store"
    script = COHORT.format(folder=f"{tmp_path}/made", slides=2, uri=f"{tmp_path}/cohort", store=store)
    surroundings = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MILCORE_REMOTE": "1", "MILCORE_ALLOWED_ROOTS": str(tmp_path),
    }  # fmt: skip
    ended = subprocess.run(["sh", "-ec", script], env=surroundings, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(PatchStore(store).slide_ids()) == 2


def test_the_killable_program_is_another_process_than_its_container_s(tmp_path: Path) -> None:
    """Its end is the container's, with its code, though the container's process was not killed."""
    from tests.conformance.step import KILLABLE, PID_FILE  # noqa: PLC0415 - beside its one use

    script = KILLABLE.replace(PID_FILE, str(tmp_path / "pid"))
    kill = f"{script.partition('; wait')[0]}; kill -KILL $(cat {tmp_path / 'pid'}); wait $!"
    assert subprocess.run(["sh", "-c", kill, "step", "sleep", "60"], check=False).returncode == 137
    assert subprocess.run(["sh", "-c", script, "step", "sh", "-c", "exit 3"], check=False).returncode == 3
