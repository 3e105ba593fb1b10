"""A Kubernetes API that answers what the doctor asks for: a namespace that works, in which tests break one thing.

Texts of statuses and events are those of Kubernetes' sources, named beside each.
"""

import json
import re
from typing import Any

from tests.cluster.http_api import Json, Objects, Request, status

NAMESPACE = "mil"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
READ = {"check": "reach", "state": "ok", "text": "http://store:9000 answers", "remedy": "", "area": ""}
LISTENING: Json = {"listening": 8265}


def in_namespace(kind: str, name: str = "", group: str = "api/v1") -> str:
    return f"/{group}/namespaces/{NAMESPACE}/{kind}{f'/{name}' if name else ''}"


def forbidden(path: str) -> Json:
    """As apiserver/pkg/endpoints/handlers/responsewriters/errors.go words it."""
    kind = path.rpartition("/")[2]
    return status(403, "Forbidden", f'{kind} is forbidden: User "ann" cannot get resource "{kind}" in API group ""')


def with_keys(*keys: str) -> Json:
    """Metadata of an object whose keys somebody applied: apimachinery's FieldsV1."""
    fields = {"f:data": {".": {}, **{f"f:{key}": {} for key in keys}}}
    return {"metadata": {"name": "it", "managedFields": [{"manager": "kubectl", "fieldsV1": fields}]}}


def node(name: str = "node-a", cpu: str = "8", memory: str = "32Gi", **more: Any) -> Json:
    """A node that is ready: kubernetes/api/core/v1 Node."""
    allocatable = {"cpu": cpu, "memory": memory, "pods": "110", **more.get("allocatable", {})}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **more.get("labels", {})}},
        "spec": more.get("spec", {}),
        "status": {
            "allocatable": allocatable,
            "conditions": [{"type": "Ready", "status": more.get("ready", "True")}],
        },
    }


def operator(image: str = "quay.io/kuberay/operator:v1.7.0") -> Json:
    return {"metadata": {"name": "kuberay-operator"}, "spec": {"containers": [{"image": image}]},
            "status": {"phase": "Running"}}  # fmt: skip


def rayjob_document(spec: Json) -> Json:
    """OpenAPI document of a RayJob with the fields of a spec's schema."""
    kinds = [{"group": "ray.io", "version": "v1", "kind": "RayJob"}]
    schema = {"x-kubernetes-group-version-kind": kinds, "properties": {"spec": spec}}
    return {"components": {"schemas": {"io.ray.v1.RayJob": schema}}}


def schema_of(*values: Any) -> Json:
    """A schema that has the fields of all values."""
    if lists := [value for value in values if isinstance(value, list)]:
        return {"type": "array", "items": schema_of(*(each for value in lists for each in value))}
    objects = [value for value in values if isinstance(value, dict)]
    names = {name for value in objects for name in value}
    fields = {name: schema_of(*(value[name] for value in objects if name in value)) for name in names}
    return {"type": "object", "properties": fields} if objects else {}


class Pod:
    """The pod of a Job.

    Args:
        state: of its container; empty before it has one.
        lines: its log.
        conditions: of the pod.
    """

    def __init__(self, state: Json, *lines: Json | str, conditions: tuple[Json, ...] = ()) -> None:
        self.state, self.conditions = state, conditions
        self.log = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)

    def body(self, name: str) -> Json:
        containers = [{"name": "doctor", "state": self.state}] if self.state else []
        status = {"phase": "Pending", "podIP": "10.1.2.3", "containerStatuses": containers}
        return {"metadata": {"name": name}, "status": {**status, "conditions": list(self.conditions)}}


class FakeCluster:
    """State of the API.

    Args:
        spec: of the RayJob whose fields KubeRay knows.
    """

    def __init__(self, spec: Json) -> None:
        self.denied_rights: set[tuple[str, str]] = set()
        self.answers: dict[str, tuple[int, Json]] = {
            path: (200, body)
            for path, body in {
                "/version": {"gitVersion": "v1.36.0"},
                "/api/v1/namespaces/mil": {"metadata": {"name": "mil"}},
                "/apis/ray.io/v1": {"resources": [{"name": "rayjobs"}, {"name": "rayclusters"}]},
                "/openapi/v3/apis/ray.io/v1": rayjob_document(schema_of(spec)),
                "/api/v1/pods": {"items": [operator()]},
                "/api/v1/nodes": {"items": [node(), node("gpu-a", allocatable={"nvidia.com/gpu": "1"})]},
                in_namespace("configmaps", "milcore-profile"): {"data": {"profile.yaml": "head_cpus: 2\n"}},
                in_namespace("secrets", "milcore-s3"): with_keys("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
                in_namespace("secrets", "milcore-ray"): with_keys("auth_mode", "auth_token"),
                in_namespace("configmaps", "milcore-storage"): with_keys("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"),
                in_namespace("networkpolicies", "milcore-rayjob", "apis/networking.k8s.io/v1"): {},
                in_namespace("resourcequotas"): {"items": []},
                in_namespace("limitranges"): {"items": []},
            }.items()
        }
        self.events: list[Json] = []
        # of the Jobs in the order of their creation; None: Kubernetes makes no pod
        self.pods: list[Pod | None] = [
            Pod({"running": {}}, READ, LISTENING),
            Pod({"terminated": {"exitCode": 0}}, {"reached": False, "control": True}),
        ]
        self.jobs: dict[str, Json] = {}
        self.created: list[Json] = []
        self.accepted: dict[str, str] = {}
        self.objects = Objects()

    def answer(self, request: Request) -> tuple[int, Any]:
        method, path, query, headers, body = request
        self.accepted[path] = headers.get("accept", "")
        if path in self.answers:
            return self.answers[path]
        if path == REVIEWS and body is not None:
            asked = body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            return 201, {"status": {"allowed": (asked["verb"], resource) not in self.denied_rights}}
        if path.startswith(JOBS):
            return self._job(method, path.removeprefix(JOBS).strip("/"), body)
        of_job, _, job = query.get("labelSelector", "").partition("job-name=")
        if path == EVENTS or (path == PODS and job and not of_job):
            return 200, {"items": self._pods(job) if path == PODS else self.events}
        if log := re.fullmatch(f"{PODS}/(.+)-abcde/log", path):
            return 200, self._pod(log[1]).log  # type: ignore[union-attr]
        return self.objects.answer(request)

    def _job(self, method: str, name: str, body: Json | None) -> tuple[int, Json]:
        if method == "POST" and body is not None:
            self.created.append(body)
            self.jobs[body["metadata"]["name"]] = body
            return 201, body
        return (200, {}) if self.jobs.pop(name, None) else (404, status(404, "NotFound", name))

    def _pod(self, job: str) -> Pod | None:
        return self.pods[[each["metadata"]["name"] for each in self.created].index(job)]

    def _pods(self, job: str) -> list[Json]:
        pod = self._pod(job)
        return [] if pod is None else [pod.body(f"{job}-abcde")]
