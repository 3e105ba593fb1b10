"""Requests to a Kubernetes API as JSON, and findings of refusals."""

from collections.abc import Callable, Iterator
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from milcore.cluster.doctor.finding import Finding, failure, warning
from milcore.cluster.jobs.rights import Right

Json = dict[str, Any]

TIMEOUT_S = (5, 20)
UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404
NO_ANSWER = (HTTPError, OSError)
WHOLE_CLUSTER = "the whole cluster"
# names of an object and of its fields, without a value
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class ApiServer:
    """A Kubernetes API and the namespace to check.

    Args:
        api: client, whose address and credentials are taken.
        namespace: of the launcher.
    """

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.namespace = namespace
        api.configuration.retries = False
        self._api = client.ApiClient(api.configuration)

    @property
    def host(self) -> str:
        """Address of the API."""
        return str(self._api.configuration.host)

    def get(self, path: str, accept: str = "application/json", **query: str) -> Any:
        """Answer of a GET."""
        return self._call("GET", path, accept, query=query)

    def post(self, path: str, body: Json) -> Any:
        """Answer of a POST."""
        return self._call("POST", path, "application/json", body=body)

    def delete(self, path: str, **query: str) -> Any:
        """Answer of a DELETE."""
        return self._call("DELETE", path, "application/json", query=query)

    def text(self, path: str) -> str:
        """Text at a path, such as a log.

        The client itself would parse one that is JSON.
        """
        answer = self._api.call_api(
            path, "GET", auth_settings=["BearerToken"], header_params={"Accept": "*/*"}, _preload_content=False,
            _return_http_data_only=True, _request_timeout=TIMEOUT_S,
        )  # fmt: skip
        return str(answer.data.decode(errors="replace"))

    def of_namespace(self, kind: str, name: str = "", group: str = "api/v1") -> str:
        """Path of an object of the namespace, or of all of a kind."""
        return f"/{group}/namespaces/{self.namespace}/{kind}{f'/{name}' if name else ''}"

    def _call(self, method: str, path: str, accept: str, query: Json | None = None, body: Json | None = None) -> Any:
        return self._api.call_api(
            path, method, query_params=list((query or {}).items()), body=body, response_type="object",
            header_params={"Accept": accept, "Content-Type": "application/json"}, auth_settings=["BearerToken"],
            _return_http_data_only=True, _request_timeout=TIMEOUT_S,
        )  # fmt: skip


def guard(
    check: str, right: Right, api: ApiServer, findings: Callable[[], Iterator[Finding]], *, everywhere: bool = False
) -> Iterator[Finding]:
    """Findings of a check; a warning where the caller lacks the right for it.

    Args:
        check: its name.
        right: that its request takes.
        api: server and namespace.
        findings: makes the request.
        everywhere: the right is one on the whole cluster.
    """
    try:
        yield from findings()
    except ApiException as error:
        yield refusal(check, right, error, WHOLE_CLUSTER if everywhere else f"namespace {api.namespace}")
    except NO_ANSWER as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        yield failure(check, f"the API does not answer ({text})", "run this again; see the API server's state")


def refusal(check: str, right: Right, error: ApiException, place: str) -> Finding:
    """The finding of a request that the API refuses in a place."""
    if error.status != FORBIDDEN:
        reason = " ".join(str(error.body or error.reason).split())
        return failure(check, f"the API refuses to {right.text}: {error.status} {reason}", "see the API server's log")
    text = f"not checked: you lack the right to {right.text} in {place}"
    return warning(check, text, "ask an administrator to run this, or for that right")
