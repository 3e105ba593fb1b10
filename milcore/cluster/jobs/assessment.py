"""State of a RayJob by what Ray and KubeRay say of it.

Pure: no API is called here.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from milcore.runtime.redaction import plain

TERMINAL_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")
NO_REASON = "no reason given"
DEADLINES = ("DeadlineExceeded", "PreRunningDeadlineExceeded")
# Ray's message of a driver that exited by itself: another attempt would end the same. KubeRay's own reason does not
# show it: it is AppFailed, too, when the head is lost with its job
EXIT_CODE = re.compile(r"Job entrypoint command failed with exit code (-?\d+)")


class Assessment(NamedTuple):
    """State of a RayJob, its reason, and whether another attempt may succeed."""

    state: Literal["going", "succeeded", "failed", "unclear"]
    reason: str = ""
    retryable: bool = False


def assess(status: Mapping[str, Any]) -> Assessment:
    """Assess a RayJob by Ray's status of the job and KubeRay's of its deployment."""
    job, deployment = status.get("jobStatus") or "", status.get("jobDeploymentStatus") or ""
    reason = ": ".join(part for part in (status.get("reason"), status.get("message")) if part) or NO_REASON
    driver_failed = EXIT_CODE.search(reason) is not None
    if job == "SUCCEEDED":
        return Assessment("succeeded")
    if deployment in {"Failed", "ValidationFailed"}:
        is_final = driver_failed or job == "STOPPED" or deployment == "ValidationFailed"
        is_final = is_final or status.get("reason") in DEADLINES
        return Assessment("failed", reason, retryable=not is_final)
    if deployment == "Retrying":
        return Assessment("going")
    if driver_failed or (deployment == "Complete" and job in TERMINAL_STATUSES):
        return Assessment("failed", f"job {job}, {reason}")
    if deployment == "Complete" or job in TERMINAL_STATUSES:
        contradiction = f"job {job or 'unknown'} while its deployment is {deployment or 'unknown'}"
        return Assessment("unclear", f"{contradiction}, {reason}")
    return Assessment("going")


def state_line(status: Mapping[str, Any]) -> str:
    """State of deployment and job, and the cluster's name."""
    job, deployment = status.get("jobStatus") or "not started", status.get("jobDeploymentStatus") or "new"
    cluster = status.get("rayClusterName")
    return f"{deployment}, job {job}{f', cluster {cluster}' if cluster else ''}"


def driver_line(message: str) -> str:
    """The driver's last line inside KubeRay's message."""
    return message.rpartition("milcore: ")[2].strip().splitlines()[0]


def one_line(reason: str) -> str:
    """A reason with the last line of the log that Ray quotes."""
    first, *lines = [line for line in map(plain, reason.splitlines()) if line.strip()] or [NO_REASON]
    return f"{first.partition(', last available logs')[0]}: {lines[-1].strip()}" if lines else first
