"""Calls of the Kubernetes API about RayJobs, retried while the API is unavailable.

The rights they need are exactly the Role in ``k8s/base``; a test derives one from the other.
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
from yaml import YAMLError

from milcore.cluster.jobs.pods import Event, Pod, parse_event, parse_pod
from milcore.cluster.jobs.rayjob_spec import COMMON_LABELS, SUBMITTER, Json
from milcore.errors import ClusterError

T = TypeVar("T")

RAY = ("ray.io", "v1")
PLURAL = "rayjobs"
# waits between tries: five minutes in all, as long as a job runs on without a heartbeat
WAITS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 30.0, 60.0, 60.0, 60.0)
TIMEOUT_S = (10, 60)
# 400: a log is requested before its container has started
BAD_REQUEST, FORBIDDEN, NOT_FOUND, CONFLICT, TOO_MANY, SERVER = 400, 403, 404, 409, 429, 500


class LogLine(NamedTuple):
    """A line of a pod's log and the time it was written."""

    when: datetime
    text: str


class RayJobs:
    """The RayJobs of one namespace.

    Args:
        api: client of the API.
        namespace: the RayJobs' namespace.
        waits_s: waits between tries while the API is unavailable, seconds.
    """

    def __init__(self, api: Any, namespace: str, waits_s: tuple[float, ...] = WAITS_S) -> None:
        self.namespace = namespace
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._waits_s = waits_s

    def create(self, body: Json) -> bool:
        """Create a RayJob; False where one of that name exists."""
        created = self._ask("create rayjobs", lambda: self._objects.create_namespaced_custom_object(
            *RAY, self.namespace, PLURAL, body, _request_timeout=TIMEOUT_S), missing=CONFLICT)  # fmt: skip
        return created is not None

    def get(self, name: str) -> Json | None:
        """The RayJob of a name; None where there is none."""
        return self._ask("get rayjobs", lambda: self._objects.get_namespaced_custom_object(
            *RAY, self.namespace, PLURAL, name, _request_timeout=TIMEOUT_S))  # fmt: skip

    def labelled(self, labels: dict[str, str]) -> list[Json]:
        """RayJobs that have all of the labels."""
        answer = self._ask("list rayjobs", lambda: self._objects.list_namespaced_custom_object(
            *RAY, self.namespace, PLURAL, label_selector=_selector(labels), _request_timeout=TIMEOUT_S))  # fmt: skip
        return answer["items"] if answer else []

    def change_owners(self, name: str, owners: list[Json]) -> bool:
        """Replace a RayJob's owners; False where there is no such job."""
        patch = {"metadata": {"ownerReferences": owners}}
        changed = self._ask("patch rayjobs", lambda: self._objects.patch_namespaced_custom_object(
            *RAY, self.namespace, PLURAL, name, patch, _request_timeout=TIMEOUT_S))  # fmt: skip
        return changed is not None

    def delete(self, name: str) -> None:
        """Delete a RayJob and its cluster; a missing one is no error."""
        self._ask("delete rayjobs", lambda: self._objects.delete_namespaced_custom_object(
            *RAY, self.namespace, PLURAL, name, propagation_policy="Background", _request_timeout=TIMEOUT_S)
        )  # fmt: skip

    def pods(self, name: str) -> list[Pod]:
        """Pods of a RayJob: of its cluster and its submitter.

        The names of all of these start with the job's name.
        """
        answer = self._ask("list pods", lambda: self._core.list_namespaced_pod(
            self.namespace, label_selector=_selector(COMMON_LABELS), _request_timeout=TIMEOUT_S))  # fmt: skip
        pods = answer.items if answer else []
        return [parse_pod(pod) for pod in pods if pod.metadata.name.startswith(f"{name}-")]

    def log_since(self, pod: str, when: datetime) -> list[LogLine]:
        """Log lines of a submitter's pod written after a time.

        It prints the driver's log. Empty while its container has not started.
        """
        text = self._ask("get pods/log", lambda: self._core.read_namespaced_pod_log(
            pod, self.namespace, container=SUBMITTER, timestamps=True, since_seconds=_seconds_since(when),
            _request_timeout=TIMEOUT_S), missing=BAD_REQUEST)  # fmt: skip
        return [line for line in _parse_log(text or "") if line.when > when]

    def warnings(self, name: str) -> list[Event]:
        """Warning events of a RayJob, its cluster and their pods, oldest first.

        The names of all of these start with the job's name.
        """
        answer = self._ask("list events", lambda: self._core.list_namespaced_event(
            self.namespace, field_selector="type=Warning", _request_timeout=TIMEOUT_S))  # fmt: skip
        events = [parse_event(event) for event in answer.items] if answer else []
        of_job = [event for event in events if f"{event.about}-".startswith(f"{name}-")]
        return sorted(of_job, key=lambda event: event.when)

    def _ask(self, action: str, call: Callable[[], T], missing: int = NOT_FOUND) -> T | None:
        """Answer of a call; None where the API answers ``missing`` or 404.

        Raises:
            ClusterError: the call is not allowed or is refused, or the API stays unavailable.
        """
        for wait_s in (*self._waits_s, None):
            try:
                return call()
            except ApiException as error:
                if error.status in {missing, NOT_FOUND}:
                    return None
                if error.status != TOO_MANY and error.status < SERVER:
                    raise ClusterError(_refusal(action, self.namespace, error)) from None
                reason = f"{error.status} {error.reason}"
            except (HTTPError, OSError) as error:
                reason = f"{type(error).__name__}: {error}"
            if wait_s is None:
                tries = len(self._waits_s) + 1
                raise ClusterError(f"the Kubernetes API stays away ({action}, tried {tries} times): {reason}")
            time.sleep(wait_s)
        raise AssertionError


def connect(namespace: str | None) -> tuple[Any, str]:
    """Client of the Kubernetes API, and the namespace to work in.

    In a pod it acts as the pod's service account, elsewhere as the kubeconfig's user.

    Raises:
        ClusterError: there is neither service account nor kubeconfig, or a pod has no namespace.
    """
    try:
        config.load_incluster_config()
    except ConfigException:
        try:
            config.load_kube_config()
            _, active = config.list_kube_config_contexts()
        # the client parses a damaged file without a check of its own
        except (ConfigException, YAMLError, OSError, AttributeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ClusterError(
                f"no Kubernetes API to make a RayJob in: {reason}; run in a pod or give a kubeconfig"
            ) from None
        return client.ApiClient(), namespace or active["context"].get("namespace", "default")
    if namespace is None:
        raise ClusterError("ray_address rayjob in a pod without POD_NAMESPACE; set it from metadata.namespace")
    return client.ApiClient(), namespace


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _refusal(action: str, namespace: str, error: ApiException) -> str:
    if error.status == FORBIDDEN:
        return (
            f"Kubernetes does not let this service account {action} in namespace {namespace}; "
            "an administrator applies k8s/base (or the kubeflow-profile overlay)"
        )
    reason = " ".join(str(error.body or error.reason).split())
    return f"Kubernetes refuses to {action} in namespace {namespace}: {error.status} {reason}"


def _seconds_since(when: datetime) -> int:
    return max(1, math.ceil((datetime.now(UTC) - when).total_seconds()) + 1)


def _parse_log(text: str) -> Iterator[LogLine]:
    for line in text.splitlines():
        stamp, _, rest = line.partition(" ")
        try:
            # cut to microseconds: Python parses no nanoseconds
            when = datetime.fromisoformat(f"{stamp.rstrip('Z')[:26]}+00:00")
        except ValueError:
            continue
        yield LogLine(when, rest)
