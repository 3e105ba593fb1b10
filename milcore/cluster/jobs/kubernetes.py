"""The few calls of the Kubernetes API that following a RayJob takes, each tried again while the API is away.

What the caller may do is exactly the Role in ``k8s/base``; a test derives one from the other.
"""

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from milcore.cluster.jobs.rayjob_spec import SUBMITTER, Json
from milcore.errors import ClusterError

T = TypeVar("T")

RAY = ("ray.io", "v1")
PLURAL = "rayjobs"
# waits between tries: five minutes in all, as long as a job goes on without a heartbeat
WAITS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 30.0, 60.0, 60.0, 60.0)
TIMEOUT_S = (10, 60)
# a log is asked for too early: its container has not started (400)
BAD_REQUEST, FORBIDDEN, NOT_FOUND, CONFLICT, TOO_MANY, SERVER = 400, 403, 404, 409, 429, 500


class LogLine(NamedTuple):
    """A line of a pod's log and when it was written."""

    when: datetime
    text: str


class RayJobs:
    """The RayJobs of one namespace.

    Args:
        api: how to reach the API.
        namespace: theirs.
        waits_s: between tries while the API is away.
    """

    def __init__(self, api: Any, namespace: str, waits_s: tuple[float, ...] = WAITS_S) -> None:
        self.namespace = namespace
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._waits_s = waits_s

    def create(self, body: Json) -> bool:
        """Create a RayJob; False where one of that name exists."""
        made = self._ask("create rayjobs", lambda: self._objects.create_namespaced_custom_object(
            *RAY, self.namespace, PLURAL, body, _request_timeout=TIMEOUT_S), missing=CONFLICT)  # fmt: skip
        return made is not None

    def get(self, name: str) -> Json | None:
        """A RayJob; None where there is none."""
        return self._ask("get rayjobs", lambda: self._objects.get_namespaced_custom_object(
            *RAY, self.namespace, PLURAL, name, _request_timeout=TIMEOUT_S))  # fmt: skip

    def labelled(self, labels: dict[str, str]) -> list[Json]:
        """The RayJobs that bear the labels."""
        found = self._ask("list rayjobs", lambda: self._objects.list_namespaced_custom_object(
            *RAY, self.namespace, PLURAL, label_selector=_selector(labels), _request_timeout=TIMEOUT_S))  # fmt: skip
        return found["items"] if found else []

    def change_owners(self, name: str, owners: list[Json]) -> bool:
        """Replace a RayJob's owners; False where there is no such job."""
        patch = {"metadata": {"ownerReferences": owners}}
        changed = self._ask("patch rayjobs", lambda: self._objects.patch_namespaced_custom_object(
            *RAY, self.namespace, PLURAL, name, patch, _request_timeout=TIMEOUT_S))  # fmt: skip
        return changed is not None

    def delete(self, name: str) -> None:
        """Delete a RayJob and with it its cluster; one that is gone is no error."""
        self._ask("delete rayjobs", lambda: self._objects.delete_namespaced_custom_object(
            *RAY, self.namespace, PLURAL, name, propagation_policy="Background", _request_timeout=TIMEOUT_S)
        )  # fmt: skip

    def log_since(self, name: str, when: datetime) -> list[LogLine]:
        """What the job's submitter, which shows the driver's log, wrote after a time; nothing while it is not there."""
        pods = self._ask("list pods", lambda: self._core.list_namespaced_pod(
            self.namespace, label_selector=f"job-name={name}", _request_timeout=TIMEOUT_S))  # fmt: skip
        started = [pod for pod in pods.items if pod.status.start_time] if pods else []
        if not started:
            return []
        pod = max(started, key=lambda pod: pod.status.start_time).metadata.name
        text = self._ask("get pods/log", lambda: self._core.read_namespaced_pod_log(
            pod, self.namespace, container=SUBMITTER, timestamps=True, since_seconds=_seconds_since(when),
            _request_timeout=TIMEOUT_S), missing=BAD_REQUEST)  # fmt: skip
        return [line for line in _parse_log(text or "") if line.when > when]

    def warnings(self, name: str) -> list[str]:
        """What warning events say of a RayJob, its cluster and their pods, which all bear its name; oldest first."""
        found = self._ask("list events", lambda: self._core.list_namespaced_event(
            self.namespace, field_selector="type=Warning", _request_timeout=TIMEOUT_S))  # fmt: skip
        of_job = [its for its in found.items if f"{its.involved_object.name}-".startswith(f"{name}-")] if found else []
        return [f"{event.reason}: {event.message}" for event in sorted(of_job, key=_last_seen)]

    def _ask(self, what: str, call: Callable[[], T], missing: int = NOT_FOUND) -> T | None:
        """The call's answer; None where the API answers ``missing``.

        Raises:
            ClusterError: the call is not allowed, is refused, or the API stays away.
        """
        for wait_s in (*self._waits_s, None):
            try:
                return call()
            except ApiException as error:
                if error.status in {missing, NOT_FOUND}:
                    return None
                if error.status != TOO_MANY and error.status < SERVER:
                    raise ClusterError(_refusal(what, self.namespace, error)) from None
                reason = f"{error.status} {error.reason}"
            except (HTTPError, OSError) as error:
                reason = f"{type(error).__name__}: {error}"
            if wait_s is None:
                tries = len(self._waits_s) + 1
                raise ClusterError(f"the Kubernetes API stays away ({what}, tried {tries} times): {reason}")
            time.sleep(wait_s)
        raise AssertionError


def connect(namespace: str | None) -> tuple[Any, str]:
    """The API as this pod's service account, or as the kubeconfig says; and the namespace to work in.

    Raises:
        ClusterError: there is neither.
    """
    try:
        config.load_incluster_config()
    except ConfigException:
        try:
            config.load_kube_config()
            _, active = config.list_kube_config_contexts()
        except ConfigException as error:
            raise ClusterError(
                f"no Kubernetes API to make a RayJob in: {error}; run in a pod or give a kubeconfig"
            ) from None
        return client.ApiClient(), namespace or active["context"].get("namespace", "default")
    if namespace is None:
        raise ClusterError("ray_address rayjob in a pod without POD_NAMESPACE; set it from metadata.namespace")
    return client.ApiClient(), namespace


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _refusal(what: str, namespace: str, error: ApiException) -> str:
    if error.status == FORBIDDEN:
        return (
            f"Kubernetes does not let this service account {what} in namespace {namespace}; "
            "an administrator applies k8s/base (or the kubeflow-profile overlay)"
        )
    said = " ".join(str(error.body or error.reason).split())
    return f"Kubernetes refuses to {what} in namespace {namespace}: {error.status} {said}"


def _last_seen(event: Any) -> datetime:
    when: datetime | None = event.last_timestamp or event.event_time or event.metadata.creation_timestamp
    return when or datetime.fromtimestamp(0, UTC)


def _seconds_since(when: datetime) -> int:
    return max(1, math.ceil((datetime.now(UTC) - when).total_seconds()) + 1)


def _parse_log(text: str) -> Iterator[LogLine]:
    for line in text.splitlines():
        stamp, _, rest = line.partition(" ")
        try:
            # nanoseconds are more than Python reads
            when = datetime.fromisoformat(f"{stamp.rstrip('Z')[:26]}+00:00")
        except ValueError:
            continue
        yield LogLine(when, rest)
