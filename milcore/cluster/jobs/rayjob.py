"""A step as a RayJob: a Ray cluster made for it, followed to its end, its log shown here, removed when it is over.

The cluster is freed by four means, because a terminated pipeline run neither deletes its pods nor surely runs exit
handlers: this process deletes the job when it is told to stop; the pipeline's exit handler deletes by label
(``free_run``); Kubernetes removes the job with the pod that owns it; and the driver ends itself without a heartbeat.
Started again, the launcher adopts the job that its former life left running.
"""

import functools
import itertools
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from milcore.cluster.jobs.kubernetes import RayJobs, connect
from milcore.cluster.jobs.profile import ClusterProfile, read_profile
from milcore.cluster.jobs.rayjob_spec import (
    DIGEST,
    RUN_LABEL,
    Json,
    Owner,
    Work,
    digest,
    job_key,
    labels_of,
    owner_reference,
    rayjob,
    rayjob_spec,
    short_hash,
)
from milcore.cluster.jobs.signals import on_leaving
from milcore.config import LaunchConfig
from milcore.errors import ClusterError, InputError
from milcore.runtime.progress import log_line

SECONDS_BETWEEN_LOOKS = 5.0
# how long the job's status and its deployment's may contradict each other; KubeRay itself decides after 300 s
SECONDS_OF_DOUBT = 420.0
ATTEMPTS = 3
SECONDS_BEFORE_NEXT = 30.0
# how often events are asked for that say why a job does not start, in looks
LOOKS_BETWEEN_WARNINGS = 12
JOB_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
DEADLINES = ("DeadlineExceeded", "PreRunningDeadlineExceeded")
# how Ray says that the driver ran and ended itself: another attempt would end the same. KubeRay's own reason does not
# tell: it is AppFailed, too, when the head is lost with its job
EXIT_CODE = re.compile(r"Job entrypoint command failed with exit code (-?\d+)")


class Surroundings(NamedTuple):
    """What the pod of a step knows of itself; all absent outside a cluster."""

    run_id: str | None
    namespace: str | None
    owner: Owner | None
    image: str | None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Surroundings":
        """Read from the variables that the pipeline sets."""
        name, uid = environment.get("POD_NAME"), environment.get("POD_UID")
        owner = Owner(name, uid) if name and uid else None
        run_id, image = environment.get("PIPELINE_RUN_ID"), environment.get("MILCORE_IMAGE")
        return cls(run_id or None, environment.get("POD_NAMESPACE") or None, owner, image or None)


class Verdict(NamedTuple):
    """What a RayJob's status says of it."""

    state: Literal["going", "succeeded", "failed", "unclear"]
    reason: str = ""
    again: bool = False


class RayJobError(ClusterError):
    """The RayJob did not end well, for a reason that another attempt may not meet."""


def run_rayjob(arguments: tuple[str, ...], launch: LaunchConfig) -> None:
    """Run ``python -m milcore.cluster ARGUMENTS`` on a Ray cluster made for it and wait for its end.

    A cluster that fails by itself (not by the work) is tried again, going on from the last checkpoint.

    Raises:
        InputError: the profile or the job says that its input cannot be used.
        ClusterError: the API does not answer or refuses, or the job failed; why.
    """
    here = Surroundings.of(os.environ)
    # outside a pipeline the folder stands for the run
    work = Work(here.run_id or arguments[1], arguments[0], arguments, max(1, launch.workers), launch.use_gpu)
    Launcher(jobs_here(), work, read_profile(launch), here).run()


def jobs_here() -> RayJobs:
    """The RayJobs of the namespace this process works in."""
    return RayJobs(*connect(Surroundings.of(os.environ).namespace))


def free_run(jobs: RayJobs, run_id: str) -> list[str]:
    """Delete every RayJob of a pipeline run; their names."""
    names = [str(job["metadata"]["name"]) for job in jobs.labelled({RUN_LABEL: short_hash(run_id)})]
    for name in names:
        jobs.delete(name)
        log_line(f"deleted RayJob {name}")
    return names


class Launcher:
    """Starts or adopts the job of a piece of work and sees it to its end.

    Args:
        jobs: the API.
        work: what is to run.
        profile: the cluster.
        here: the pod of this process.
        pause: how to wait between looks, seconds.
    """

    def __init__(
        self,
        jobs: RayJobs,
        work: Work,
        profile: ClusterProfile,
        here: Surroundings,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._jobs = jobs
        self._work = work
        self._profile = profile
        self._here = here
        self._pause = pause

    def run(self) -> None:
        """Return once the work has succeeded.

        Raises:
            InputError, ClusterError: as ``run_rayjob``.
        """
        for left in range(ATTEMPTS - 1, -1, -1):
            name = self._start()
            try:
                with on_leaving(functools.partial(self._jobs.delete, name)):
                    self._follow(name)
            except RayJobError as error:
                if not left:
                    raise
                log_line(f"{error}; trying again in {SECONDS_BEFORE_NEXT:.0f} s ({left} left)")
                self._pause(SECONDS_BEFORE_NEXT)
            else:
                return

    def _start(self) -> str:
        """Create the next attempt's job, or adopt one that has not failed; its name."""
        spec = rayjob_spec(self._work, self._profile, self._here.image or self._profile.image)
        before = self._jobs.labelled(labels_of(self._work))
        for job in before:
            leaves = "deletionTimestamp" in job["metadata"] or judge(job.get("status", {})).state == "failed"
            if not leaves and self._adopt(job, digest(spec)):
                return str(job["metadata"]["name"])
        name = f"{job_key(self._work)}-r{_next_attempt(before)}"
        body = rayjob(name, self._work, spec, self._profile, self._here.owner)
        # refused as existing, it was made by a try whose answer got lost
        self._jobs.create(body)
        log_line(f"RayJob {name} in namespace {self._jobs.namespace}: {spec['entrypoint']}")
        return name

    def _adopt(self, job: Json, wanted: str) -> bool:
        """Take over a job that runs: it must go with this pod now, no longer with the former one."""
        name = str(job["metadata"]["name"])
        if job["metadata"].get("annotations", {}).get(DIGEST) != wanted:
            raise ClusterError(
                f"RayJob {name} works on the same folder with other settings; wait for its end, or "
                f"`kubectl delete rayjob {name}`, then run again"
            )
        owners = [owner_reference(self._here.owner)] if self._here.owner else []
        adopted = self._jobs.change_owners(name, owners)
        if adopted:
            log_line(f"RayJob {name} is there already: following it")
        return adopted

    def _follow(self, name: str) -> None:
        seen, shown, doubt_s, warned = "", datetime.fromtimestamp(0, UTC), 0.0, set[str]()
        for look in itertools.count(1):
            job = self._jobs.get(name)
            if job is None:
                raise RayJobError(f"RayJob {name} was deleted while it was followed")
            status = job.get("status", {})
            for line in self._jobs.log_since(name, shown):
                log_line(line.text)
                shown = line.when
            if (now := _state_line(status)) != seen:
                seen = now
                log_line(f"RayJob {name}: {now}")
            if not status.get("jobStatus") and look % LOOKS_BETWEEN_WARNINGS == 0:
                self._say_why_it_waits(name, warned)
            verdict = judge(status)
            doubt_s = doubt_s + SECONDS_BETWEEN_LOOKS if verdict.state == "unclear" else 0.0
            if verdict.state == "succeeded":
                return
            if verdict.state == "failed" or doubt_s > SECONDS_OF_DOUBT:
                raise self._failure(name, verdict)
            self._pause(SECONDS_BETWEEN_LOOKS)

    def _say_why_it_waits(self, name: str, warned: set[str]) -> None:
        """What Kubernetes warns of while nothing runs, for example a lack of nodes; each warning once."""
        for warning in self._jobs.warnings(name):
            if warning not in warned:
                warned.add(warning)
                log_line(f"RayJob {name} waits: {warning}")

    def _failure(self, name: str, verdict: Verdict) -> Exception:
        code = EXIT_CODE.search(verdict.reason)
        if code and int(code[1]) == InputError.exit_code:
            return InputError(_own_line(verdict.reason))
        seen = "; ".join(self._jobs.warnings(name)[-2:])
        text = f"RayJob {name} failed: {verdict.reason}{f' ({seen})' if seen else ''}"
        return RayJobError(text) if verdict.again else ClusterError(text)


def judge(status: Mapping[str, Any]) -> Verdict:
    """What to make of the two states of a RayJob: Ray's of the job, and KubeRay's of its deployment."""
    job, deployment = status.get("jobStatus") or "", status.get("jobDeploymentStatus") or ""
    said = ": ".join(part for part in (status.get("reason"), status.get("message")) if part) or "no reason given"
    work_failed = EXIT_CODE.search(said) is not None
    if job == "SUCCEEDED":
        return Verdict("succeeded")
    if deployment in {"Failed", "ValidationFailed"}:
        final = work_failed or job == "STOPPED" or deployment == "ValidationFailed" or status.get("reason") in DEADLINES
        return Verdict("failed", said, again=not final)
    if deployment == "Retrying":
        return Verdict("going")
    if work_failed or (deployment == "Complete" and job in JOB_ENDED):
        return Verdict("failed", f"job {job}, {said}")
    if deployment == "Complete" or job in JOB_ENDED:
        return Verdict("unclear", f"job {job or 'unknown'} while its deployment is {deployment or 'unknown'}, {said}")
    return Verdict("going")


def _next_attempt(before: list[Json]) -> int:
    return 1 + max((int(job["metadata"]["name"].rpartition("-r")[2]) for job in before), default=-1)


def _state_line(status: Mapping[str, Any]) -> str:
    job, deployment = status.get("jobStatus") or "not started", status.get("jobDeploymentStatus") or "new"
    cluster = status.get("rayClusterName")
    return f"{deployment}, job {job}{f', cluster {cluster}' if cluster else ''}"


def _own_line(message: str) -> str:
    """The driver's own last line inside KubeRay's message."""
    return message.rpartition("milcore: ")[2].strip().splitlines()[0]
