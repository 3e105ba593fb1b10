"""Short Jobs with the Ray pods' own spec: image, object store, network.

The first checks the object store and then listens on the dashboard's port; the second, without the labels of Ray pods,
must not reach it. Both are removed, and remove themselves where this process is killed.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

from kubernetes.client.exceptions import ApiException

from milcore.cluster.doctor.api_server import FORBIDDEN, NO_ANSWER, NOT_FOUND, ApiServer, Json, refusal
from milcore.cluster.doctor.autoscaler import LATER, scaler_of_pod
from milcore.cluster.doctor.finding import Finding, failure, ok, warning
from milcore.cluster.doctor.pod import CONTROL, LISTENING, REACH, REACHED
from milcore.cluster.jobs.pods import STARTING
from milcore.cluster.jobs.rights import Right
from milcore.runtime.progress import log_line

JOBS = "apis/batch/v1"
LABELS = {"app.kubernetes.io/name": "milcore-doctor"}
POLL_S = 1.0
# reason of a pod that no node has room for
UNSCHEDULABLE = "Unschedulable"
# of a Job whose maker was killed
DEADLINE_S, KEPT_S = 300, 60
# reasons why a container never starts by itself -> next step
REMEDY_IMAGE = "push the image to where nodes pull from; name it in the cluster profile or MILCORE_IMAGE"
NEVER = {
    "ErrImagePull": REMEDY_IMAGE,
    "ImagePullBackOff": REMEDY_IMAGE,
    "ErrImageNeverPull": REMEDY_IMAGE,
    "InvalidImageName": REMEDY_IMAGE,
    "CreateContainerConfigError": "apply the secrets and k8s/base with all their keys to the namespace",
    "CreateContainerError": "see the node's container runtime",
    "RunContainerError": "see the node's container runtime",
}
REMEDY_ADMISSION = "see the quota, the service account and the admission policy that the message names"


class _RequestError(Exception):
    """A request that the API refuses, and the right that it takes."""

    def __init__(self, right: Right, error: ApiException) -> None:
        super().__init__(str(error))
        self.right, self.error = right, error


@contextlib.contextmanager
def _needs(right: Right) -> Iterator[None]:
    """Name the right of a request that the API refuses."""
    try:
        yield
    except ApiException as error:
        raise _RequestError(right, error) from None


class Outcome(NamedTuple):
    """Lines that a pod wrote, its address, or the finding that it gave instead."""

    lines: Sequence[Json]
    address: str = ""
    fault: Finding | None = None


def pod_findings(
    api: ApiServer, spec: Json, uri: str | None, wait_s: float, pause: Callable[[float], None] = time.sleep
) -> Generator[Finding]:
    """Run the Jobs and judge what their pods say.

    Args:
        api: server and namespace.
        spec: of a RayJob.
        uri: of a store or run that the pod checks; None: the object store alone.
        wait_s: seconds that a pod may take to start.
        pause: waits a number of seconds.
    """
    try:
        with _job(api, job_body(spec, ["--listen", *([uri] if uri else [])], is_ray_pod=True)) as name:
            outcome = _follow(api, name, wait_s, pause)
            yield from _store_findings(outcome)
            if outcome.address:
                yield _network_finding(api, spec, outcome.address, wait_s, pause)
    except _RequestError as refused:
        yield refusal("pod", refused.right, refused.error, f"namespace {api.namespace}")
    except NO_ANSWER as error:
        yield failure(
            "pod", f"the API stays away: {type(error).__name__}", "run this again; see the API server's state"
        )


def job_body(spec: Json, arguments: Sequence[str], *, is_ray_pod: bool) -> Json:
    """The Job of a pod as the Ray head's, of the submitter's size.

    Args:
        spec: of a RayJob.
        arguments: of ``python -m milcore.cluster.doctor.pod``.
        is_ray_pod: it has the labels of Ray pods.
    """
    template = deepcopy(spec["rayClusterSpec"]["headGroupSpec"]["template"])
    size = spec["submitterPodTemplate"]["spec"]["containers"][0]["resources"]
    (container,) = template["spec"]["containers"]
    command = ["python", "-m", "milcore.cluster.doctor.pod", *arguments]
    container |= {"name": "doctor", "command": command, "resources": size}
    template["spec"] |= {"restartPolicy": "Never", "automountServiceAccountToken": False}
    if not is_ray_pod:
        template["metadata"]["labels"] = {"sidecar.istio.io/inject": "false", **LABELS}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"milcore-doctor-{uuid.uuid4().hex[:8]}", "labels": LABELS},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": DEADLINE_S,
            "ttlSecondsAfterFinished": KEPT_S,
            "template": template,
        },
    }


@contextlib.contextmanager
def _job(api: ApiServer, body: Json) -> Iterator[str]:
    """Name of a Job that lives as long as the context."""
    name = body["metadata"]["name"]
    try:
        with _needs(Right("create", "batch", "jobs")):
            api.post(api.of_namespace("jobs", group=JOBS), body)
        yield name
    finally:
        _remove(api, name)


def _remove(api: ApiServer, name: str) -> None:
    try:
        api.delete(api.of_namespace("jobs", name, JOBS), propagationPolicy="Background")
    except ApiException as error:
        # without the right to create one there is none
        if error.status not in (NOT_FOUND, FORBIDDEN):
            log_line(f"Job {name} stays: {error.status} {error.reason}; kubectl delete job {name} -n {api.namespace}")
    except NO_ANSWER as error:
        log_line(f"Job {name} may stay: {type(error).__name__}; kubectl delete job {name} -n {api.namespace}")


def _follow(api: ApiServer, name: str, wait_s: float, pause: Callable[[float], None]) -> Outcome:
    """Wait until the pod has said all, or will not start."""
    pods: list[Json] = []
    for _ in range(max(1, int(wait_s / POLL_S))):
        with _needs(Right("list", "", "pods")):
            pods = api.get(api.of_namespace("pods"), labelSelector=f"job-name={name}")["items"]
        outcome = _pod_outcome(api, pods[0]) if pods else _refused_outcome(api, name)
        if outcome is not None:
            return outcome
        pause(POLL_S)
    return Outcome([], fault=_late_fault(api, pods, wait_s))


def _late_fault(api: ApiServer, pods: Sequence[Json], wait_s: float) -> Finding:
    """The finding of a pod that has not said all in time.

    One that is on its way, such as by the first pull of the image, may be well.
    """
    state = _container_state(pods[0]) if pods else {}
    if "running" in state or state.get("waiting", {}).get("reason") in STARTING:
        doing = "checks the object store" if "running" in state else "pulls the image, or makes the container"
        text = f"could not be told in {wait_s:.0f} s: the pod's node still {doing}"
        return warning("pod", text, "run this again in some minutes; a node's first pull of the image takes that long")
    text = f"not started after {wait_s:.0f} s: {_reason(pods[0]) if pods else 'no pod was made'}"
    scaler = scaler_of_pod(api, pods[0]["metadata"]["name"]) if pods and UNSCHEDULABLE in text else None
    if scaler is not None:
        return warning("pod", f"{text}; {scaler} may add a node for it", LATER)
    return failure("pod", text, f"see `kubectl get events -n {api.namespace}`; free room, or wait")


def _refused_outcome(api: ApiServer, name: str) -> Outcome | None:
    """The outcome of a Job whose pods Kubernetes refuses to make."""
    selector = f"involvedObject.name={name},reason=FailedCreate"
    with _needs(Right("list", "", "events")):
        events = api.get(api.of_namespace("events"), fieldSelector=selector)["items"]
    if not events:
        return None
    return Outcome([], fault=failure("pod", f"refused: {events[-1]['message']}", REMEDY_ADMISSION))


def _pod_outcome(api: ApiServer, pod: Json) -> Outcome | None:
    """The outcome of a pod; None while it works or may still start."""
    state = _container_state(pod)
    waiting = state.get("waiting", {})
    if waiting.get("reason") in NEVER:
        return Outcome([], fault=failure("pod", _reason(pod), NEVER[waiting["reason"]]))
    if not state.keys() & {"running", "terminated"}:
        return None
    with _needs(Right("get", "", "pods/log")):
        log = api.text(api.of_namespace("pods", f"{pod['metadata']['name']}/log"))
    lines = list(_objects(log))
    if any(LISTENING in line for line in lines):
        return Outcome(lines, address=pod["status"].get("podIP", ""))
    if "terminated" in state:
        return Outcome(lines, fault=_ended_fault(state["terminated"], lines, log))
    return None


def _container_state(pod: Json) -> Json:
    """State of the pod's container; empty before it has one."""
    return next((each["state"] for each in pod["status"].get("containerStatuses", [])), {})


def _objects(log: str) -> Iterator[Json]:
    """JSON objects of a log, whose last line may not be whole yet."""
    for line in log.splitlines():
        with contextlib.suppress(ValueError):
            if line.startswith("{"):
                yield json.loads(line)


def _ended_fault(terminated: Json, lines: Sequence[Json], log: str) -> Finding | None:
    """The failure of a pod that ended without a word."""
    if lines:
        return None
    if "No module named" in log:
        return failure("pod", f"the image has another milcore: {log.splitlines()[-1]}", "build and push it anew")
    last = (log.splitlines() or [terminated.get("message", "")])[-1]
    text = f"its container ended with code {terminated.get('exitCode')} ({terminated.get('reason')}): {last}"
    return failure("pod", text, "see the message; the image must hold this milcore")


def _reason(pod: Json) -> str:
    """Reason why a pod waits, as Kubernetes says it."""
    states = [each["state"].get("waiting", {}) for each in pod["status"].get("containerStatuses", [])]
    conditions = [each for each in pod["status"].get("conditions", []) if each["status"] == "False"]
    for each in (*states, *conditions):
        if each.get("reason"):
            return f"{each['reason']}: {each.get('message', '')}"
    return str(pod["status"].get("phase", "unknown"))


def _store_findings(outcome: Outcome) -> Iterator[Finding]:
    """Findings that the pod made of the object store, after its own."""
    if outcome.fault is not None:
        yield outcome.fault
        return
    yield ok("pod", "the image is pulled, and a pod as Ray's starts")
    for line in outcome.lines:
        if "check" in line:
            yield Finding(f"{line['check']} from a pod", line["state"], line["text"], line["remedy"])


def _network_finding(
    api: ApiServer, spec: Json, address: str, wait_s: float, pause: Callable[[float], None]
) -> Finding:
    """Try to reach the first pod from one without the labels of Ray pods."""
    check = "network policy enforced"
    with _job(api, job_body(spec, [REACH, address], is_ray_pod=False)) as name:
        outcome = _follow(api, name, wait_s, pause)
    answers = [line for line in outcome.lines if REACHED in line]
    if not answers:
        text = outcome.fault.text if outcome.fault else "the second pod said nothing"
        return warning(check, f"not checked: {text}", "run this again")
    if answers[-1][REACHED]:
        text = "a pod of another kind reaches the dashboard's port of a Ray pod"
        return failure(check, text, "apply k8s/base, and use a network plugin that enforces NetworkPolicy")
    if not answers[-1].get(CONTROL):
        text = "not checked: a pod of another kind reaches neither the API server nor the object store"
        return warning(check, text, "see whether pods of the namespace may open connections at all")
    return ok(check, "a pod of another kind does not reach the dashboard's port of a Ray pod")
