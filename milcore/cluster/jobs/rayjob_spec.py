"""The RayJob object of a step: entrypoint, Ray cluster, labels and owner.

Pure: no API is called here. The cluster lives as long as the job. KubeRay makes a random token for each such cluster
and passes it to head, workers, autoscaler and submitter (``authOptions``). Credentials of the object store come from a
Secret by reference only.
"""

import hashlib
import json
import shlex
from importlib.metadata import version
from typing import Any, NamedTuple

from milcore.cluster.jobs.profile import ClusterProfile, Nodes
from milcore.runtime.allow_list import REMOTE
from milcore.runtime.progress import IN_JOB

Json = dict[str, Any]

COMMON_LABELS = {"app.kubernetes.io/name": "milcore", "app.kubernetes.io/component": "rayjob"}
RUN_LABEL = "milcore/run"
STEP_LABEL = "milcore/step"
DIGEST_ANNOTATION = "milcore/spec-digest"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
USER_ID = 10001
SUBMITTER = "ray-job-submitter"
SECONDS_AFTER_LAUNCHER = 600


class Owner(NamedTuple):
    """Pod that owns a RayJob; Kubernetes removes the job with it."""

    name: str
    uid: str


class JobRequest(NamedTuple):
    """A step to run as a RayJob.

    Args:
        run_id: the pipeline's run; outside a pipeline the step's folder.
        step: ingest, encode, train or tune.
        arguments: of ``python -m milcore.cluster``: the step, its folder, flags.
        workers: Ray workers.
        use_gpu: a GPU for each of them.
        folder_uri: folder that keeps the attempts' logs; None keeps none.
    """

    run_id: str
    step: str
    arguments: tuple[str, ...]
    workers: int
    use_gpu: bool
    folder_uri: str | None = None


def short_hash(*parts: str) -> str:
    """First ten hex digits of the sha256 of the parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def job_key(request: JobRequest) -> str:
    """Name of a step's RayJobs without the attempt.

    With ``-r<attempt>`` it stays well below KubeRay's limit of 47 characters.
    """
    return f"mil-{request.step}-{short_hash(request.run_id, request.step, *request.arguments[1:2])}"


def job_labels(request: JobRequest) -> dict[str, str]:
    """Labels that select the RayJobs of a run and of a step."""
    return {RUN_LABEL: short_hash(request.run_id), STEP_LABEL: job_key(request)}


def rayjob_spec(request: JobRequest, profile: ClusterProfile, image: str) -> Json:
    """The ``spec`` of a RayJob.

    Raises:
        InputError: the workers need more nodes than the profile allows.
    """
    return {
        "entrypoint": shlex.join(["python", "-m", "milcore.cluster", *request.arguments, *_patience(profile)]),
        "submissionMode": "K8sJobMode",
        "backoffLimit": 0,  # the step starts the next attempt itself, since it knows why the last one failed
        "submitterConfig": {"backoffLimit": profile.submitter_retries},
        "activeDeadlineSeconds": profile.active_deadline_s,
        "preRunningDeadlineSeconds": profile.pre_running_deadline_s,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": profile.kept_s,
        "submitterPodTemplate": _template(_submitter(profile, image), profile),
        "rayClusterSpec": _cluster(request, profile, image),
    }


def _patience(profile: ClusterProfile) -> list[str]:
    """Flags by which the driver gives up later than the launcher.

    The launcher knows the reason.
    """
    return ["--scale-up-seconds", str(profile.pre_running_deadline_s + SECONDS_AFTER_LAUNCHER)]


def rayjob(name: str, request: JobRequest, spec: Json, profile: ClusterProfile, owner: Owner | None) -> Json:
    """The RayJob object."""
    metadata: Json = {
        "name": name,
        "labels": {**COMMON_LABELS, **job_labels(request), **_queue(profile)},
        "annotations": {DIGEST_ANNOTATION: spec_digest(spec)},
    }
    if owner is not None:
        metadata["ownerReferences"] = [owner_reference(owner)]
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def spec_digest(spec: Json) -> str:
    """Digest of a spec, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def owner_reference(owner: Owner) -> Json:
    """Owner reference of a RayJob to the pod of the step."""
    return {"apiVersion": "v1", "kind": "Pod", "name": owner.name, "uid": owner.uid}


def _queue(profile: ClusterProfile) -> dict[str, str]:
    return {} if profile.queue is None else {QUEUE_LABEL: profile.queue}


def _cluster(request: JobRequest, profile: ClusterProfile, image: str) -> Json:
    nodes = profile.nodes(use_gpu=request.use_gpu)
    count = nodes.nodes_for(request.workers)
    head = _container("ray-head", profile, image, _resources(str(profile.head_cpus), f"{profile.head_memory_gib}Gi"))
    head_pod = _template(head, profile, {"nodeSelector": profile.head_node_selector})
    head_pod["spec"]["automountServiceAccountToken"] = profile.autoscaling
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        **(_autoscaler() if profile.autoscaling else {}),
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head_pod},
        "workerGroupSpecs": [_group("gpu" if request.use_gpu else "cpu", nodes, count, profile, image)],
    }


def _autoscaler() -> Json:
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 300,
            "resources": _range(("200m", "512Mi"), ("500m", "1Gi")),  # as the standing cluster has it
            "securityContext": _container_security(),
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - a mount of the pod
        },
    }


def _group(name: str, nodes: Nodes, count: int, profile: ClusterProfile, image: str) -> Json:
    gpus = {nodes.gpu_resource: str(nodes.gpus)} if nodes.gpus else {}
    resources = _resources(str(nodes.cpus), f"{nodes.memory_gib}Gi", gpus)
    container = _container("ray-worker", profile, image, resources)
    placement = {
        "nodeSelector": nodes.node_selector,
        "tolerations": list(nodes.tolerations),
        "runtimeClassName": nodes.runtime_class,
    }
    lowest = min(nodes.min_nodes, count) if profile.autoscaling else count
    return {
        "groupName": name,
        "replicas": lowest,
        "minReplicas": lowest,
        "maxReplicas": count,
        # Ray's autoscaler, and its nodes, know GPUs by themselves only where the resource's name ends with "gpu"
        "rayStartParams": {"num-gpus": str(nodes.gpus)} if nodes.gpus else {},
        "template": _template(container, profile, placement),
    }


def _container(name: str, profile: ClusterProfile, image: str, resources: Json) -> Json:
    secret, config = profile.s3_secret, profile.storage_config
    return {
        **_image(name, profile, image),
        "env": [
            _variable_from("AWS_ACCESS_KEY_ID", "secretKeyRef", secret),
            _variable_from("AWS_SECRET_ACCESS_KEY", "secretKeyRef", secret),
            _variable_from("AWS_ENDPOINT_URL", "configMapKeyRef", config),
            _variable_from("AWS_DEFAULT_REGION", "configMapKeyRef", config),
            {"name": REMOTE, "value": "1"},
            {"name": IN_JOB, "value": "1"},
            # interval in which Ray Train collects its workers' reports (s); it bounds the speed of short epochs
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
    # `ray job submit` and `ray job logs --follow` were measured at 92 MiB and, while they start, a core
    resources = _range(("100m", "256Mi"), ("500m", "512Mi"))
    return {**_image(SUBMITTER, profile, image), "resources": resources, "volumeMounts": mounts}


def _image(name: str, profile: ClusterProfile, image: str) -> Json:
    policy = {} if profile.image_pull_policy is None else {"imagePullPolicy": profile.image_pull_policy}
    return {"name": name, "image": image, **policy, "securityContext": _container_security()}


def _template(container: Json, profile: ClusterProfile, placement: Json | None = None) -> Json:
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
        **(placement or {}),
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
        "priorityClassName": profile.priority_class,
    }
    pod |= {key: value for key, value in optional.items() if value}
    metadata = {
        "labels": {**COMMON_LABELS, "sidecar.istio.io/inject": "false"},
        # a job's pods are not moved to free a node: the job's state is in its head's memory
        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    }
    return {"metadata": metadata, "spec": pod}


def _variable_from(name: str, kind: str, source: str) -> Json:
    return {"name": name, "valueFrom": {kind: {"name": source, "key": name}}}


def _resources(cpu: str, memory: str, gpus: Json | None = None) -> Json:
    amount = {"cpu": cpu, "memory": memory, **(gpus or {})}
    return {"requests": amount, "limits": amount}


def _range(requests: tuple[str, str], limits: tuple[str, str]) -> Json:
    """Requests and limits of CPU and memory."""
    kinds = {"requests": requests, "limits": limits}
    return {kind: {"cpu": cpu, "memory": memory} for kind, (cpu, memory) in kinds.items()}


def _container_security() -> Json:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
