"""Objects that the cases create: namespaces, secrets, an overlay, pods of steps.

Pure: no API is called here.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from milcore import __version__
from milcore.cluster.jobs.profile import ClusterProfile
from milcore.cluster.jobs.rayjob_spec import JobRequest, rayjob_spec
from milcore.config import parse_config
from milcore.errors import InputError
from milcore.runtime.progress import IN_JOB

Json = dict[str, Any]

K8S = Path(__file__).resolve().parents[2] / "k8s"
NAME = "milcore-conformance"
SELECTOR = f"app.kubernetes.io/name={NAME}"
LABELS = {"app.kubernetes.io/name": NAME}
# Argo sets this label on every pod of a pipeline run; the network policy knows steps by it
STEP_LABELS = {"workflows.argoproj.io/workflow": "conformance"}
ACCOUNT = "milcore-step"
S3_KEYS, STORAGE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
PROFILES, PROFILE_FOLDER = "conformance-profiles", "/etc/conformance"
WORKERS = 2
# seconds without a worker after which a step of the cases gives up; KubeRay counts the head's start, too
PATIENCE_S = 180
NO_SECRET = "milcore-none"  # noqa: S105 - a name
DEADLINE_S = 3600  # of a step's pod whose maker was killed
SIZE = {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "4Gi"}}


class Settings(NamedTuple):
    """What the cases work with.

    Args:
        image: of every pod.
        uri: folder on s3:// that pods write to.
        variables: keys and address of the object store, as pods see it.
    """

    image: str
    uri: str
    variables: Mapping[str, str]


def read_settings(image: str, uri: str, environment: Mapping[str, str]) -> Settings:
    """Settings of the environment.

    Raises:
        InputError: the folder is none on s3://, or a key is missing.
    """
    if not uri.startswith("s3://"):
        raise InputError(f"--uri: expected a folder on an object store, got {uri!r}; allowed: s3://BUCKET/FOLDER")
    names = (*S3_KEYS, *STORAGE_KEYS)
    absent = [name for name in names if not environment.get(name)]
    if absent:
        raise InputError(
            f"environment: expected {', '.join(names)}, got no {', '.join(absent)}; allowed: keys and address of the "
            "object store as the cluster's pods reach it"
        )
    image = image or f"milcore:{__version__}"
    if ":" not in image.rpartition("/")[2] or "@" in image:
        raise InputError(f"--image: expected a name with a tag, got {image!r}; allowed: such as milcore:{__version__}")
    return Settings(image, uri.rstrip("/"), {name: environment[name] for name in names})


def namespace(name: str) -> Json:
    """A namespace in which Kubernetes admits only pods of PodSecurity's level restricted."""
    labels = {**LABELS, "pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def secret_bodies(settings: Settings) -> list[Json]:
    """Keys of the object store, and a new token of the standing cluster."""
    keys = {name: settings.variables[name] for name in S3_KEYS}
    values = {"milcore-s3": keys, "milcore-ray": {"auth_mode": "token", "auth_token": secrets.token_hex(32)}}
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": LABELS}, "stringData": data}
        for name, data in values.items()
    ]


def service_account() -> Json:
    """Service account of steps; the overlay gives it the launcher's rights."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "labels": LABELS}}


def storage(settings: Settings) -> Json:
    """ConfigMap with the address of the object store, for a namespace without an overlay."""
    data = {name: settings.variables[name] for name in STORAGE_KEYS}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "milcore-storage"}, "data": data}


def profile(settings: Settings, **changes: object) -> Json:
    """Cluster profile of the overlay for one machine, with the image of the cases."""
    return {**local_profile(), "image": settings.image, **changes}


def local_profile() -> Json:
    """The profile of overlays/local."""
    overlay = yaml.safe_load((K8S / "overlays/local/kustomization.yaml").read_text())
    (patch,) = [each["patch"] for each in overlay["patches"] if each["target"]["kind"] == "ConfigMap"]
    (change,) = yaml.safe_load(patch)
    return dict(yaml.safe_load(change["value"]))


def profiles(settings: Settings) -> Json:
    """ConfigMap of the profiles of the cases: one that works, one that gives up soon, one without its secret."""
    soon = {"pre_running_deadline_s": PATIENCE_S}
    values = {
        "works.yaml": profile(settings),
        "soon.yaml": profile(settings, **soon),
        "secret.yaml": profile(settings, s3_secret=NO_SECRET, **soon),
    }
    data = {name: yaml.safe_dump(value) for name, value in values.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": PROFILES, "labels": LABELS}, "data": data}


def kustomization(
    folder: Path, overlay: str, name: str, settings: Settings, *, standing: bool = True, account: str = ACCOUNT
) -> Json:
    """An overlay on one of the project's, as k8s/README tells an administrator to make it.

    Args:
        folder: that it is written to.
        overlay: in k8s.
        name: of the namespace.
        settings: image and object store.
        standing: with the standing cluster.
        account: service account that gets the launcher's rights.
    """
    new_name, _, tag = settings.image.rpartition(":")
    patches = [
        _patch("ConfigMap", "milcore-storage", {"data": storage(settings)["data"]}),
        _patch("ConfigMap", "milcore-profile", {"data": {"profile.yaml": yaml.safe_dump(profile(settings))}}),
    ]
    if overlay == "overlays/local":
        subjects = [{"kind": "ServiceAccount", "name": account, "namespace": name}]
        patches.append(
            _patch("RoleBinding", "milcore-launcher", {"subjects": subjects}, "rbac.authorization.k8s.io/v1")
        )
    if not standing:
        patches += [
            _patch("RayCluster", "milcore", {"$patch": "delete"}, "ray.io/v1"),
            _patch("PodDisruptionBudget", "milcore-head", {"$patch": "delete"}, "policy/v1"),
        ]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": name,
        "resources": [os.path.relpath(K8S / overlay, folder)],
        "images": [{"name": "milcore", "newName": new_name, "newTag": tag}],
        "patches": patches,
    }


def _patch(kind: str, name: str, change: Json, version: str = "v1") -> Json:
    return {"patch": yaml.safe_dump({"apiVersion": version, "kind": kind, "metadata": {"name": name}, **change})}


def job_spec(settings: Settings) -> Json:
    """Spec of a RayJob of the cases."""
    request = JobRequest("conformance", "train", ("train", settings.uri), WORKERS, use_gpu=False)
    return rayjob_spec(request, parse_config(ClusterProfile, profile(settings)), settings.image)


def step_pod(name: str, command: Sequence[str], settings: Settings, run_id: str, **changes: Any) -> Json:
    """Pod of a pipeline's step: as a Ray head's, with what the pipelines give to a launcher.

    Args:
        name: of the pod.
        command: of its container.
        settings: image and object store.
        run_id: of the pipeline run.
        changes: labels, account, job_image: others than a step's.
    """
    template = deepcopy(job_spec(settings)["rayClusterSpec"]["headGroupSpec"]["template"]["spec"])
    (container,) = template["containers"]
    variables = [each for each in container["env"] if each["name"] != IN_JOB]
    container |= {"name": "step", "command": list(command), "resources": SIZE}
    container["env"] = [*variables, *_step_variables(run_id, changes.get("job_image", settings.image))]
    container["volumeMounts"] = [*container["volumeMounts"], {"name": "profiles", "mountPath": PROFILE_FOLDER}]
    template["volumes"].append({"name": "profiles", "configMap": {"name": PROFILES, "optional": True}})
    template |= {
        "serviceAccountName": changes.get("account", ACCOUNT),
        "automountServiceAccountToken": True,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_S,
    }
    labels = {**LABELS, "sidecar.istio.io/inject": "false", **changes.get("labels", STEP_LABELS)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": template}


def _step_variables(run_id: str, image: str) -> list[Json]:
    fields = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid", "POD_NAMESPACE": "metadata.namespace"}
    keys = {"RAY_AUTH_TOKEN": "auth_token", "RAY_AUTH_MODE": "auth_mode"}
    # a cohort's slides are made in the pod
    values = {"PIPELINE_RUN_ID": run_id, "MILCORE_IMAGE": image, "MILCORE_ALLOWED_ROOTS": "/tmp"}  # noqa: S108 - of the pod
    return [
        *({"name": name, "value": value} for name, value in values.items()),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": "milcore-ray", "key": key, "optional": True}}}
            for name, key in keys.items()
        ),
    ]


def quota(hard: Mapping[str, str]) -> Json:
    """A quota named conformance."""
    body = {"metadata": {"name": "conformance", "labels": LABELS}, "spec": {"hard": dict(hard)}}
    return {"apiVersion": "v1", "kind": "ResourceQuota", **body}
