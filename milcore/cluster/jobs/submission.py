"""A step as a job on a standing Ray cluster: submitted to its dashboard, followed to its end, its log shown here.

The same step submitted again while its job still runs is not started twice, but followed.
"""

import hashlib
import shlex
import time
from collections.abc import Sequence

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from milcore.cluster.jobs.signals import on_leaving
from milcore.cluster.workers.connect import handed_on
from milcore.config import LaunchConfig
from milcore.errors import ClusterError, InputError
from milcore.runtime.progress import log_line

SECONDS_BETWEEN_LOOKS = 1.0
LOOKS_LOST_IN_A_ROW = 60


def run_job(arguments: Sequence[str], launch: LaunchConfig) -> None:
    """Run ``python -m milcore.cluster ARGUMENTS`` on the cluster at ``launch.ray_address`` and wait for its end.

    The job is stopped when this process is told to stop (SIGTERM, Ctrl-C). The cluster has credentials of its own: none
    travel with the job, since its dashboard shows what does.

    Raises:
        InputError: the job says that its input cannot be used.
        ClusterError: no cluster answers, or the job failed; why.
    """
    client = _client(launch.ray_address)
    entrypoint = shlex.join(["python", "-m", "milcore.cluster", *arguments])
    job_id = f"milcore-{hashlib.sha256(entrypoint.encode()).hexdigest()[:16]}"
    _submit(client, job_id, entrypoint)
    with on_leaving(lambda: client.stop_job(job_id)):
        job = _follow(client, job_id)
    if job.status == JobStatus.SUCCEEDED:
        return
    lines = client.get_job_logs(job_id).strip().splitlines()
    reason = lines[-1].removeprefix("milcore: ") if lines else f"{job.message}"
    if job.driver_exit_code == InputError.exit_code:
        raise InputError(reason)
    raise ClusterError(f"Ray job {job_id} at {launch.ray_address} ended as {job.status}: {reason}")


def _client(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ClusterError(f"no Ray dashboard answers at {address}: {reason}") from error


def _submit(client: JobSubmissionClient, job_id: str, entrypoint: str) -> None:
    """Start the job, unless it runs; one of that name that has ended makes room."""
    before = next((job for job in client.list_jobs() if job.submission_id == job_id), None)
    if before is not None and not before.status.is_terminal():
        log_line(f"Ray job {job_id} runs already: following it")
        return
    if before is not None:
        client.delete_job(job_id)
    client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env={"env_vars": handed_on()})
    log_line(f"Ray job {job_id}: {entrypoint}")


def _follow(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """Show the job's log as it grows; its details once it has ended. A dashboard that is away is asked again."""
    shown = lost = 0
    while True:
        try:
            job = client.get_job_info(job_id)
            log = client.get_job_logs(job_id)
        except (OSError, RuntimeError) as error:
            lost += 1
            if lost == LOOKS_LOST_IN_A_ROW:
                raise ClusterError(f"lost the dashboard of Ray job {job_id}: {error}") from error
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        lost = 0
        end = len(log) if job.status.is_terminal() else log.rfind("\n") + 1
        for line in log[shown:end].splitlines():
            log_line(line)
        shown = max(shown, end)
        if job.status.is_terminal():
            return job
        time.sleep(SECONDS_BETWEEN_LOOKS)
