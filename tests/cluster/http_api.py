"""Server on loopback of the fakes of the Kubernetes API, and objects that any of them keeps."""

import contextlib
import copy
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

import pytest

Json = dict[str, Any]


class Request(NamedTuple):
    """A call: its headers' names are in lower case, its body is parsed."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class Fake(Protocol):
    """What answers: a code with an object or a text; code 0 cuts the connection."""

    def answer(self, request: Request) -> tuple[int, Any]: ...


def status(code: int, reason: str, message: str) -> Json:
    """apimachinery's Status."""
    kind = {"kind": "Status", "apiVersion": "v1", "status": "Success" if code < 300 else "Failure"}
    return {**kind, "code": code, "reason": reason, "message": message}


@contextlib.contextmanager
def serving(fake: Fake) -> Iterator[str]:
    """The fake at an address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake})) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def kubeconfig(address: str, namespace: str = "mil") -> Json:
    """A kubeconfig of a namespace at an address."""
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "ann", "namespace": namespace}}],
        "clusters": [{"name": "lab", "cluster": {"server": address}}], "users": [{"name": "ann", "user": {}}],
    }  # fmt: skip


@contextlib.contextmanager
def serving_here(fake: Fake, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The fake as the cluster that this process is given by its kubeconfig."""
    file = folder / "kubeconfig"
    with serving(fake) as address:
        file.write_text(json.dumps(kubeconfig(address)))
        # the client reads the variable once, when it is imported
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
        yield address


class Handler(BaseHTTPRequestHandler):
    """Turns HTTP into calls of the fake, one at a time."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    fake: Fake
    lock = threading.Lock()

    def _handle(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, url.path, query, headers, json.loads(text) if text else None)
        with self.lock:
            code, answer = self.fake.answer(request)
        if code:
            self._send(code, answer)
        else:
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815 - the base class's names

    def _send(self, code: int, value: Any) -> None:
        is_text = isinstance(value, str)
        data = value.encode() if is_text else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if is_text else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""


class Objects:
    """Objects of any kind, by path: created, read, listed by label, merged and deleted."""

    def __init__(self) -> None:
        self.by_path: dict[str, Json] = {}

    def answer(self, request: Request) -> tuple[int, Any]:
        match request.method:
            case "POST":
                return self._create(request)
            case "DELETE":
                return self._delete(request)
            case "PATCH":
                return self._patch(request)
        if request.path in self.by_path:
            return 200, self.by_path[request.path]
        if is_collection(request.path):
            return 200, {"kind": "List", "items": self.listed(request.path, request.query.get("labelSelector", ""))}
        return missing(request.path)

    def listed(self, path: str, selector: str = "") -> list[Json]:
        """Objects of a kind that have all labels of a selector."""
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        objects = [body for place, body in self.by_path.items() if place.rpartition("/")[0] == path]
        return [body for body in objects if wanted.items() <= body["metadata"].get("labels", {}).items()]

    def _create(self, request: Request) -> tuple[int, Any]:
        path = f"{request.path}/{request.body['metadata']['name']}"
        if path in self.by_path:
            return 409, status(409, "AlreadyExists", f"{path} already exists")
        body = copy.deepcopy(request.body)
        body["metadata"] |= {"uid": f"uid-of-{path.rpartition('/')[2]}"}
        if request.query.get("dryRun") != "All":
            self.by_path[path] = body
        return 201, body

    def _delete(self, request: Request) -> tuple[int, Any]:
        """Delete an object; a namespace with all that is in it."""
        if request.path not in self.by_path:
            return missing(request.path)
        del self.by_path[request.path]
        inside = f"/namespaces/{request.path.rpartition('/')[2]}/"
        if request.path.startswith("/api/v1/namespaces/") and request.path.count("/") == 4:
            self.by_path = {path: body for path, body in self.by_path.items() if inside not in path}
        return 200, status(200, "", "")

    def _patch(self, request: Request) -> tuple[int, Any]:
        if request.path not in self.by_path:
            return missing(request.path)
        body = self.by_path[request.path]
        for name, value in request.body.items():
            body[name] = {**body.get(name, {}), **value} if isinstance(value, dict) else value
        return 200, body


def is_collection(path: str) -> bool:
    """True where a path ends with a kind, and not with an object of it."""
    inside = re.fullmatch(r"/(?:api|apis/[^/]+)/v\w+/(.+)", path)
    return inside is not None and len(inside[1].split("/")) % 2 == 1


def missing(path: str) -> tuple[int, Json]:
    return 404, status(404, "NotFound", f"the server could not find the requested resource: {path}")
