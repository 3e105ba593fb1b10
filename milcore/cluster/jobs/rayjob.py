"""Run a step as a RayJob with a Ray cluster of its own.

The driver's log is shown here, and the cluster is removed when the job has ended.

The cluster is freed by four means, because a terminated pipeline run does not delete its pods and may not run its exit
handler: this process deletes the job on SIGTERM; the pipeline's exit handler deletes by label (``delete_run_jobs``);
Kubernetes removes the job with the pod that owns it; and the driver exits without a heartbeat. A launcher that is
started again adopts the job that the one before it left running.
"""

import functools
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from milcore.cluster.jobs.assessment import assess
from milcore.cluster.jobs.follow import Follower, RayJobError
from milcore.cluster.jobs.job_log import JobLog, log_uri, logged_attempts
from milcore.cluster.jobs.kubernetes import RayJobs, connect
from milcore.cluster.jobs.profile import ClusterProfile, read_profile
from milcore.cluster.jobs.rayjob_spec import (
    DIGEST_ANNOTATION,
    RUN_LABEL,
    JobRequest,
    Json,
    Owner,
    job_key,
    job_labels,
    owner_reference,
    rayjob,
    rayjob_spec,
    short_hash,
    spec_digest,
)
from milcore.cluster.jobs.signals import on_termination
from milcore.config import LaunchConfig
from milcore.errors import ClusterError, MILError
from milcore.runtime.progress import log_line

ATTEMPTS = 3
SECONDS_BEFORE_NEXT_ATTEMPT = 30.0


class StepEnvironment(NamedTuple):
    """Pipeline run, namespace, pod and image of a step; all None outside a cluster."""

    run_id: str | None
    namespace: str | None
    owner: Owner | None
    image: str | None

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "StepEnvironment":
        """Read the environment variables that the pipeline sets."""
        name, uid = variables.get("POD_NAME"), variables.get("POD_UID")
        owner = Owner(name, uid) if name and uid else None
        run_id, image = variables.get("PIPELINE_RUN_ID"), variables.get("MILCORE_IMAGE")
        return cls(run_id or None, variables.get("POD_NAMESPACE") or None, owner, image or None)


def run_rayjob(arguments: tuple[str, ...], launch: LaunchConfig) -> None:
    """Run ``python -m milcore.cluster ARGUMENTS`` as a RayJob and wait for its end.

    A cluster that fails by itself (not by the job's own error) is tried again, from the last checkpoint.

    Raises:
        InputError: the profile or the job's input cannot be used.
        ClusterError: the API does not answer or refuses, or the job failed; the text has the reason.
    """
    environment = StepEnvironment.read(os.environ)
    # outside a pipeline the folder identifies the run
    run_id = environment.run_id or arguments[1]
    step, folder_uri, *_ = arguments
    request = JobRequest(run_id, step, arguments, max(1, launch.workers), launch.use_gpu, folder_uri)
    Launcher(connect_rayjobs(), request, read_profile(launch), environment).run()


def connect_rayjobs() -> RayJobs:
    """The RayJobs of the namespace that this process works in."""
    return RayJobs(*connect(StepEnvironment.read(os.environ).namespace))


def delete_run_jobs(jobs: RayJobs, run_id: str) -> list[str]:
    """Delete the RayJobs of a pipeline run and return their names.

    Those that have ended and are kept for a while stay.
    """
    all_jobs = jobs.labelled({RUN_LABEL: short_hash(run_id)})
    names = [str(job["metadata"]["name"]) for job in all_jobs if not _is_kept(job)]
    for name in names:
        jobs.delete(name)
        log_line(f"deleted RayJob {name}")
    return names


def _is_kept(job: Json) -> bool:
    has_ended = assess(job.get("status", {})).state in {"succeeded", "failed"}
    return has_ended and job["spec"].get("ttlSecondsAfterFinished", 0) > 0


class Launcher:
    """Starts or adopts the RayJob of a step and follows it to its end.

    Args:
        jobs: RayJobs of the namespace.
        request: the step to run.
        profile: its cluster.
        environment: pod of this process.
        pause: waits a number of seconds between polls.
    """

    def __init__(
        self,
        jobs: RayJobs,
        request: JobRequest,
        profile: ClusterProfile,
        environment: StepEnvironment,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._jobs = jobs
        self._request = request
        self._profile = profile
        self._environment = environment
        self._pause = pause
        self._logs_are_kept = True

    def run(self) -> None:
        """Return once the step has succeeded.

        Attempts that failed are removed only with the last one, so that they can be looked into until then.

        Raises:
            InputError, ClusterError: as ``run_rayjob``.
        """
        for attempts_left in range(ATTEMPTS - 1, -1, -1):
            name = self._start()
            with on_termination(functools.partial(self._stop, name)):
                failure = self._follow(name)
                if not isinstance(failure, RayJobError) or not attempts_left:
                    break
                log_line(f"{failure}; trying again in {SECONDS_BEFORE_NEXT_ATTEMPT:.0f} s ({attempts_left} left)")
                self._pause(SECONDS_BEFORE_NEXT_ATTEMPT)
        self._remove_jobs()
        if failure is not None:
            raise failure

    def _follow(self, name: str) -> MILError | None:
        """Failure of an attempt; None where it succeeded.

        Its log is kept at its end.
        """
        step, uri = self._request.step, self._request.folder_uri
        deadline_s = self._profile.pre_running_deadline_s
        kept = log_uri(uri, step, name.rpartition("-r")[2]) if uri else None
        # a step that is stopped frees its cluster first: storage that stays away would take the time for it
        with JobLog(kept) as log, on_termination(functools.partial(self._jobs.delete, name)):
            failure = Follower(self._jobs, name, deadline_s, self._pause, log).run()
        self._logs_are_kept = self._logs_are_kept and log.is_kept
        return failure

    def _stop(self, name: str) -> None:
        """Remove an attempt that runs, and those before it, which nobody goes on from."""
        self._jobs.delete(name)
        self._remove_jobs()

    def _start(self) -> str:
        """Create the next attempt's RayJob, or adopt one; returns its name."""
        spec = rayjob_spec(self._request, self._profile, self._environment.image or self._profile.image)
        earlier = self._jobs.labelled(job_labels(self._request))
        for job in earlier:
            if not self._is_over(job) and self._adopt(job, spec_digest(spec)):
                return str(job["metadata"]["name"])
        key = job_key(self._request)
        names = [str(job["metadata"]["name"]) for job in earlier] + [pod.name for pod in self._jobs.pods(key)]
        names += [f"{key}-r{attempt}" for attempt in logged_attempts(self._request.folder_uri, self._request.step)]
        for attempt in itertools.count(next_attempt(key, names)):
            body = rayjob(f"{key}-r{attempt}", self._request, spec, self._profile, self._environment.owner)
            if self._create(body):
                break
        name = str(body["metadata"]["name"])
        log_line(f"RayJob {name} in namespace {self._jobs.namespace}: {spec['entrypoint']}")
        return name

    def _is_over(self, job: Json) -> bool:
        """True where a job is not to be followed.

        Outside a pipeline one that has succeeded is over too: it did the work of an earlier command.
        """
        state = assess(job.get("status", {})).state
        return "deletionTimestamp" in job["metadata"] or state == "failed" or (
            state == "succeeded" and self._environment.run_id is None
        )  # fmt: skip

    def _create(self, body: Json) -> bool:
        """Create a RayJob; False where another has its name.

        One of the same settings was created by a request whose answer was lost.
        """
        if self._jobs.create(body):
            return True
        there = self._jobs.get(body["metadata"]["name"])
        annotations = there["metadata"].get("annotations", {}) if there else {}
        return bool(annotations.get(DIGEST_ANNOTATION) == body["metadata"]["annotations"][DIGEST_ANNOTATION])

    def _remove_jobs(self) -> None:
        """Remove the step's RayJobs, which have ended; those to be kept are told.

        An API that stays away costs a line, not the work that is done.
        """
        try:
            names = [str(job["metadata"]["name"]) for job in self._jobs.labelled(job_labels(self._request))]
            if self._profile.kept_s == 0 and self._logs_are_kept:
                for name in names:
                    self._jobs.delete(name)
                return
        except ClusterError as error:
            log_line(f"the step's RayJobs are not removed: {error}")
            return
        if names:
            reason = f"kept for {self._profile.kept_s} s" if self._profile.kept_s else "left with their logs"
            log_line(f"{reason}: {delete_command(names, self._jobs.namespace)}")

    def _adopt(self, job: Json, digest: str) -> bool:
        """Make this pod the owner of a running job; False where it is gone.

        Raises:
            ClusterError: the job has other settings.
        """
        name = str(job["metadata"]["name"])
        if job["metadata"].get("annotations", {}).get(DIGEST_ANNOTATION) != digest:
            raise ClusterError(
                f"RayJob {name} works on the same folder with other settings; wait for its end, or "
                f"`kubectl delete rayjob {name}`, then run again"
            )
        owner = self._environment.owner
        owners = [owner_reference(owner)] if owner else []
        adopted = self._jobs.change_owners(name, owners)
        if adopted:
            log_line(f"RayJob {name} is there already: following it")
        return adopted


def delete_command(names: list[str], namespace: str) -> str:
    """Command that removes RayJobs and what is left of their clusters."""
    return f"kubectl delete rayjob {' '.join(names)} -n {namespace}"


def next_attempt(key: str, names: Iterable[str]) -> int:
    """Number of an attempt above those of RayJobs and of their pods.

    A job's pods outlive it for a while, and another job of its name would take them for its own.
    """
    matches = (re.match(rf"{re.escape(key)}-r(\d+)(?:-|$)", name) for name in names)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)
