"""Pods of a RayJob: which of them wait, and why.

Pure: no API is called here. What the launcher may read is the pods' own status and the namespace's events; a pod that
a quota refuses never exists, and only an event tells of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from milcore.runtime.redaction import plain, redact

HEAD, WORKER, SUBMITTER = "head", "worker", "submitter"
NODE_TYPE_LABEL, SUBMITTER_LABEL = "ray.io/node-type", "job-name"
ENDED = ("Succeeded", "Failed")
# what a container waits for that starts as it should
STARTING = ("ContainerCreating", "PodInitializing")


class Pod(NamedTuple):
    """A pod, by its status.

    Args:
        name: of the pod.
        role: head, worker or submitter.
        start: time that a node took it; None before that.
        ready: its containers run and answer.
        waiting: it is to start.
        reason: why it is not ready; empty where its status has none.
    """

    name: str
    role: str
    start: datetime | None
    ready: bool
    waiting: bool
    reason: str


class Event(NamedTuple):
    """A warning of Kubernetes about an object.

    ``times`` and ``when`` grow as it comes again.
    """

    about: str
    reason: str
    message: str
    times: int
    when: datetime

    @property
    def line(self) -> str:
        """Reason and message."""
        return f"{self.reason}: {self.message}"


def parse_pod(pod: Any) -> Pod:
    """A pod of Kubernetes' client."""
    labels, status = pod.metadata.labels or {}, pod.status
    role = SUBMITTER if SUBMITTER_LABEL in labels else labels.get(NODE_TYPE_LABEL, HEAD)
    conditions = {condition.type: condition for condition in status.conditions or []}
    ready = "Ready" in conditions and conditions["Ready"].status == "True"
    is_over = status.phase in ENDED or pod.metadata.deletion_timestamp is not None
    waiting = not ready and not is_over and (role != SUBMITTER or status.phase != "Running")
    return Pod(pod.metadata.name, role, status.start_time, ready, waiting, _reason(status, conditions))


def parse_event(event: Any) -> Event:
    """An event of Kubernetes' client."""
    when = event.last_timestamp or event.event_time or event.metadata.creation_timestamp
    when = when or datetime.fromtimestamp(0, UTC)
    return Event(event.involved_object.name, event.reason, _line(event.message or ""), event.count or 1, when)


def wait_lines(pods: Iterable[Pod], events: Iterable[Event], known: set[Event]) -> list[str]:
    """Lines of the pods that a job waits for, and of warnings about none.

    Pods of one role and reason share a line.

    Args:
        pods: of the job.
        events: warnings about the job, its cluster and their pods, oldest first.
        known: events that were told before; those of ``events`` join them.
    """
    pods, events = list(pods), list(events)
    latest = {event.about: event.line for event in events}
    groups: dict[tuple[str, str], list[str]] = {}
    for pod in pods:
        if pod.waiting:
            reason = pod.reason or latest.get(pod.name) or "it is being started"
            groups.setdefault((pod.role, reason), []).append(pod.name)
    of_pods = [_group_line(role, names, reason) for (role, reason), names in groups.items()]
    of_others = [event.line for event in _new_events(events, {pod.name for pod in pods}, known)]
    known.update(events)
    return of_pods + of_others


def _new_events(events: Iterable[Event], pods: set[str], known: set[Event]) -> Iterator[Event]:
    """The latest new event of each object and reason, without those about pods.

    A refused pod has another name each time, and KubeRay an event for each.
    """
    latest: Mapping[tuple[str, str], Event] = {(event.about, event.reason): event for event in events}
    return (event for event in latest.values() if event.about not in pods and event not in known)


def _group_line(role: str, names: list[str], reason: str) -> str:
    count = f"{role} pod {names[0]}" if len(names) == 1 else f"{len(names)} {role} pods, {names[0]} first"
    return f"{count}: {reason}"


def _reason(status: Any, conditions: Mapping[str, Any]) -> str:
    """Reason of a container, else of the scheduler, else of the pod."""
    containers = [*(status.init_container_statuses or []), *(status.container_statuses or [])]
    texts = [_container_reason(container.state) for container in containers if container.state]
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        texts.append(_text(scheduled.reason, scheduled.message))
    texts.append(_text(status.reason, status.message))
    return next((text for text in texts if text), "")


def _container_reason(state: Any) -> str:
    if state.waiting is not None and state.waiting.reason not in STARTING:
        return _text(state.waiting.reason, state.waiting.message)
    if state.terminated is not None and state.terminated.exit_code:
        return _text(state.terminated.reason, f"exit code {state.terminated.exit_code}")
    return ""


def _text(reason: str | None, message: str | None) -> str:
    return ": ".join(_line(part) for part in (reason, message) if part)


def _line(text: str) -> str:
    """A text of Kubernetes on one line, without secrets and control characters."""
    return redact(plain(" ".join(text.split())))
