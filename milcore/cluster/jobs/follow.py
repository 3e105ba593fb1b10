"""Follow one RayJob to its end, showing its log and what it waits for."""

import itertools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from milcore.cluster.jobs.assessment import EXIT_CODE, Assessment, assess, driver_line, one_line, state_line
from milcore.cluster.jobs.job_log import JobLog
from milcore.cluster.jobs.kubernetes import RayJobs
from milcore.cluster.jobs.pods import SUBMITTER, WORKER, Event, Pod, wait_lines
from milcore.errors import ClusterError, InputError, MILError
from milcore.runtime.progress import log_line
from milcore.runtime.redaction import redact

SECONDS_BETWEEN_POLLS = 5.0
# seconds for which job status and deployment status may contradict each other; KubeRay itself decides after 300 s
SECONDS_OF_CONTRADICTION = 420.0
# polls between requests of the warning events, of which lines tell what the job waits for
POLLS_BETWEEN_EVENTS = 12
SECONDS_BETWEEN_EVENTS = POLLS_BETWEEN_EVENTS * SECONDS_BETWEEN_POLLS
# deployments in which a job is to have workers: a queue holds none of these
WITH_WORKERS = ("Initializing", "Running")


class RayJobError(ClusterError):
    """A RayJob failed for a reason that another attempt may not meet."""


class Follower:
    """Follows a RayJob.

    Args:
        jobs: RayJobs of the namespace.
        name: of the job.
        worker_deadline_s: seconds without any worker after which the job fails.
        pause: waits a number of seconds between polls.
        log: of the job's lines.
    """

    def __init__(
        self, jobs: RayJobs, name: str, worker_deadline_s: float, pause: Callable[[float], None], log: JobLog
    ) -> None:
        self._jobs, self._name, self._worker_deadline_s, self._pause = jobs, name, worker_deadline_s, pause
        self._log = log
        self._submitter = ""
        self._state = ""
        self._shown = datetime.fromtimestamp(0, UTC)
        self._known: set[Event] = set()
        self._waits: list[str] = []
        self._contradiction_s = self._without_worker_s = 0.0

    def run(self) -> MILError | None:
        """The job's failure, once it has ended; None where it has succeeded.

        A RayJobError is a failure that another attempt may not meet.

        Raises:
            ClusterError: the API stays away, or refuses.
        """
        for poll in itertools.count(1):
            job = self._jobs.get(self._name)
            if job is None:
                return RayJobError(f"RayJob {self._name} was deleted while it was followed")
            status, pods = job.get("status", {}), self._jobs.pods(self._name)
            self._show_log(pods)
            self._show_state(status)
            assessment = self._assess(status)
            if assessment.state in {"succeeded", "failed"}:
                return self._failure(assessment) if assessment.state == "failed" else None
            if poll % POLLS_BETWEEN_EVENTS == 0:
                self._show_waits(pods)
                if self._is_without_worker(status, pods):
                    return self._shortage()
            self._pause(SECONDS_BETWEEN_POLLS)
        raise AssertionError

    def _show_log(self, pods: list[Pod]) -> None:
        """Log the driver's new lines, which the submitter prints.

        Another submitter hands the job in again, or follows it: the one before was lost, by itself or with the head.
        """
        started = [(pod.start, pod.name) for pod in pods if pod.role == SUBMITTER and pod.start]
        if not started:
            return
        _, submitter = max(started)
        if self._submitter not in {"", submitter}:
            log_line(f"RayJob {self._name}: its head or submitter was lost; {submitter} takes over")
        self._submitter = submitter
        for line in self._jobs.log_since(submitter, self._shown):
            self._log.add(line.text)
            self._shown = line.when

    def _show_state(self, status: Mapping[str, Any]) -> None:
        state = state_line(status)
        if state != self._state:
            self._state = state
            log_line(f"RayJob {self._name}: {state}")

    def _assess(self, status: Mapping[str, Any]) -> Assessment:
        """The job's state; a contradiction that lasts is a failure."""
        assessment = assess(status)
        self._contradiction_s = self._contradiction_s + SECONDS_BETWEEN_POLLS if assessment.state == "unclear" else 0.0
        is_over = self._contradiction_s > SECONDS_OF_CONTRADICTION
        return assessment._replace(state="failed") if is_over else assessment

    def _show_waits(self, pods: list[Pod]) -> None:
        """Log which pods wait and why."""
        lines = wait_lines(pods, self._jobs.warnings(self._name), self._known)
        for line in lines:
            log_line(f"RayJob {self._name} waits: {line}")
        self._waits = lines or self._waits

    def _is_without_worker(self, status: Mapping[str, Any], pods: list[Pod]) -> bool:
        """True where there has been no worker for ``worker_deadline_s``."""
        has_worker = any(pod.ready and pod.role == WORKER for pod in pods)
        is_short = not has_worker and status.get("jobDeploymentStatus") in WITH_WORKERS
        self._without_worker_s = self._without_worker_s + SECONDS_BETWEEN_EVENTS if is_short else 0.0
        return self._without_worker_s >= self._worker_deadline_s

    def _shortage(self) -> ClusterError:
        reason = "; ".join(self._waits[-2:]) or "Kubernetes tells no reason"
        return ClusterError(
            f"RayJob {self._name} had no worker for {self._without_worker_s:.0f} s (pre_running_deadline_s of the "
            f"cluster profile): {reason}"
        )

    def _failure(self, assessment: Assessment) -> MILError:
        code = EXIT_CODE.search(assessment.reason)
        if code and int(code[1]) == InputError.exit_code:
            return InputError(redact(driver_line(assessment.reason)))
        warnings = "; ".join(event.line for event in self._jobs.warnings(self._name)[-2:])
        reason = redact(one_line(assessment.reason))
        text = f"RayJob {self._name} failed: {reason}{f' ({warnings})' if warnings else ''}"
        return RayJobError(text) if assessment.retryable else ClusterError(text)
