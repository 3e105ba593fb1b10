"""The RayJob object of a step: a cluster of its own that lives as long as the work. Pure: no API is called here.

KubeRay makes a random token for each such cluster and hands it to head, workers, autoscaler and submitter
(``authOptions``). Credentials of the object store come from a Secret by reference only.
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray

from milcore.cluster.jobs.profile import ClusterProfile, Nodes

Json = dict[str, Any]

MANAGED = {"app.kubernetes.io/name": "milcore", "app.kubernetes.io/component": "rayjob"}
RUN_LABEL = "milcore/run"
STEP_LABEL = "milcore/step"
DIGEST = "milcore/spec-digest"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
USER_ID = 10001
SUBMITTER = "ray-job-submitter"


class Owner(NamedTuple):
    """The pod that waits for the job: with it Kubernetes removes the job."""

    name: str
    uid: str


class Work(NamedTuple):
    """What is to run, and for which run of the pipeline."""

    run_id: str
    step: str
    arguments: tuple[str, ...]
    workers: int
    use_gpu: bool


def short_hash(*parts: str) -> str:
    """Ten hex digits of the parts' sha256."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def job_key(work: Work) -> str:
    """What the attempts of a piece of work are named after; with ``-r<attempt>`` well below KubeRay's 47 characters."""
    return f"mil-{work.step}-{short_hash(work.run_id, work.step, *work.arguments[1:2])}"


def labels_of(work: Work) -> dict[str, str]:
    """By which the jobs of a run, and of a step, are found."""
    return {RUN_LABEL: short_hash(work.run_id), STEP_LABEL: job_key(work)}


def rayjob_spec(work: Work, profile: ClusterProfile, image: str) -> Json:
    """The ``spec`` of the RayJob.

    Raises:
        InputError: the profile's nodes do not suffice for the workers.
    """
    return {
        "entrypoint": shlex.join(["python", "-m", "milcore.cluster", *work.arguments]),
        "submissionMode": "K8sJobMode",
        "backoffLimit": 0,  # the step itself starts the next attempt, and knows why the last one failed
        "submitterConfig": {"backoffLimit": profile.submitter_retries},
        "activeDeadlineSeconds": profile.active_deadline_s,
        "preRunningDeadlineSeconds": profile.pre_running_deadline_s,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": profile.kept_s,
        "submitterPodTemplate": _template(_submitter(profile, image), profile),
        "rayClusterSpec": _cluster(work, profile, image),
    }


def rayjob(name: str, work: Work, spec: Json, profile: ClusterProfile, owner: Owner | None) -> Json:
    """The whole object."""
    metadata: Json = {
        "name": name,
        "labels": {**MANAGED, **labels_of(work), **_queue(profile)},
        "annotations": {DIGEST: digest(spec)},
    }
    if owner is not None:
        metadata["ownerReferences"] = [owner_reference(owner)]
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def digest(spec: Json) -> str:
    """Equal for equal specs."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def owner_reference(owner: Owner) -> Json:
    """By which the job goes when the pod goes."""
    return {"apiVersion": "v1", "kind": "Pod", "name": owner.name, "uid": owner.uid}


def _queue(profile: ClusterProfile) -> dict[str, str]:
    return {} if profile.queue is None else {QUEUE_LABEL: profile.queue}


def _cluster(work: Work, profile: ClusterProfile, image: str) -> Json:
    nodes = profile.gpu_nodes if work.use_gpu else profile.cpu_nodes
    needed = nodes.needed(work.workers)
    head = _container("ray-head", profile, image, _resources(str(profile.head_cpus), f"{profile.head_memory_gib}Gi"))
    head_pod = _template(head, profile, profile.head_node_selector)
    head_pod["spec"]["automountServiceAccountToken"] = profile.autoscaling
    return {
        "rayVersion": ray.__version__,
        "authOptions": {"mode": "token"},
        **(_autoscaler() if profile.autoscaling else {}),
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head_pod},
        "workerGroupSpecs": [_group("gpu" if work.use_gpu else "cpu", nodes, needed, profile, image)],
    }


def _autoscaler() -> Json:
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 300,
            "resources": _resources("500m", "1Gi"),
            "securityContext": _confined(),
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - a mount of the pod
        },
    }


def _group(name: str, nodes: Nodes, needed: int, profile: ClusterProfile, image: str) -> Json:
    resources = _resources(str(nodes.cpus), f"{nodes.memory_gib}Gi", nodes.gpus)
    container = _container("ray-worker", profile, image, resources)
    lowest = min(nodes.min_nodes, needed) if profile.autoscaling else needed
    return {
        "groupName": name,
        "replicas": lowest,
        "minReplicas": lowest,
        "maxReplicas": needed,
        "rayStartParams": {},
        "template": _template(container, profile, nodes.node_selector, nodes.tolerations),
    }


def _container(name: str, profile: ClusterProfile, image: str, resources: Json) -> Json:
    secret, config = profile.s3_secret, profile.storage_config
    return {
        **_image(name, profile, image),
        "env": [
            _from("AWS_ACCESS_KEY_ID", "secretKeyRef", secret),
            _from("AWS_SECRET_ACCESS_KEY", "secretKeyRef", secret),
            _from("AWS_ENDPOINT_URL", "configMapKeyRef", config),
            _from("AWS_DEFAULT_REGION", "configMapKeyRef", config),
            # how often Ray Train collects its workers' reports (s): it paces short epochs
            {"name": "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "value": "1"},
        ],
        "resources": resources,
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a mount of the pod
            {"name": "shared-mem", "mountPath": "/dev/shm"},  # noqa: S108 - a mount of the pod
        ],
    }


def _submitter(profile: ClusterProfile, image: str) -> Json:
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - a mount of the pod
    return {**_image(SUBMITTER, profile, image), "resources": _resources("500m", "1Gi"), "volumeMounts": mounts}


def _image(name: str, profile: ClusterProfile, image: str) -> Json:
    policy = {} if profile.image_pull_policy is None else {"imagePullPolicy": profile.image_pull_policy}
    return {"name": name, "image": image, **policy, "securityContext": _confined()}


def _template(
    container: Json,
    profile: ClusterProfile,
    node_selector: dict[str, str] | None = None,
    tolerations: Sequence[Json] = (),
) -> Json:
    pod: Json = {
        "serviceAccountName": profile.service_account,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": f"{profile.tmp_gib}Gi"}},
            {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": f"{profile.shm_gib}Gi"}},
        ],
    }
    if container["name"] == SUBMITTER:
        pod["restartPolicy"] = "Never"
    optional = {
        "nodeSelector": node_selector,
        "tolerations": list(tolerations),
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
        "priorityClassName": profile.priority_class,
    }
    pod |= {key: value for key, value in optional.items() if value}
    metadata = {
        "labels": {**MANAGED, "sidecar.istio.io/inject": "false"},
        # a job's pods are not moved to save a node: its head holds what runs
        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    }
    return {"metadata": metadata, "spec": pod}


def _from(name: str, kind: str, source: str) -> Json:
    return {"name": name, "valueFrom": {kind: {"name": source, "key": name}}}


def _resources(cpu: str, memory: str, gpus: int = 0) -> Json:
    amount = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {"requests": amount, "limits": amount}


def _confined() -> Json:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
