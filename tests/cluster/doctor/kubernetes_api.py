"""A Kubernetes API that answers what the doctor asks for: a namespace that works, in which tests break one thing.

Texts of statuses and events are those of Kubernetes' sources, named beside each.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]

NAMESPACE = "mil"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
READ = {"check": "reach", "state": "ok", "text": "http://store:9000 answers", "remedy": "", "area": ""}
LISTENING: Json = {"listening": 8265}


def in_namespace(kind: str, name: str = "", group: str = "api/v1") -> str:
    return f"/{group}/namespaces/{NAMESPACE}/{kind}{f'/{name}' if name else ''}"


def status(code: int, reason: str, message: str) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


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
            Pod({"terminated": {"exitCode": 0}}, {"reached": False}),
        ]
        self.jobs: dict[str, Json] = {}
        self.created: list[Json] = []
        self.accepted: dict[str, str] = {}

    def answer(self, method: str, path: str, query: dict[str, str], body: Json | None) -> tuple[int, Any]:
        if path in self.answers:
            return self.answers[path]
        if path == REVIEWS and body is not None:
            asked = body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            return 201, {"status": {"allowed": (asked["verb"], resource) not in self.denied_rights}}
        if path.startswith(JOBS):
            return self._job(method, path.removeprefix(JOBS).strip("/"), body)
        if path in {PODS, EVENTS}:
            job = query.get("labelSelector", "").removeprefix("job-name=")
            return 200, {"items": self._pods(job) if path == PODS else self.events}
        if log := re.fullmatch(f"{PODS}/(.+)-abcde/log", path):
            return 200, self._pod(log[1]).log  # type: ignore[union-attr]
        return 404, status(404, "NotFound", "the server could not find the requested resource")

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


@contextlib.contextmanager
def serving(fake: FakeCluster) -> Iterator[str]:
    """The fake at an address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake})) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    """Turns requests into calls of the fake."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeCluster

    def _handle(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.fake.accepted[url.path] = self.headers.get("Accept", "")
        code, answer = self.fake.answer(self.command, url.path, query, json.loads(text) if text else None)
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815 - the base class's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""
