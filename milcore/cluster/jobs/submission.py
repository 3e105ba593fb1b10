"""Submit a step as a job to a standing Ray cluster and follow it.

The job's log is shown here. A step that is submitted again while its job still runs is not started twice, but followed.
"""

import functools
import hashlib
import shlex
import time
from collections.abc import Sequence

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from milcore.cluster.jobs.assessment import one_line
from milcore.cluster.jobs.job_log import JobLog, log_uri, logged_attempts
from milcore.cluster.jobs.signals import on_termination
from milcore.cluster.workers.connect import forwarded_variables
from milcore.config import LaunchConfig
from milcore.errors import ClusterError, InputError
from milcore.runtime.progress import IN_JOB, log_line
from milcore.runtime.redaction import redact

SECONDS_BETWEEN_POLLS = 1.0
FAILED_POLLS_IN_A_ROW = 60
# a head that was only just started listens half a minute before its dashboard does
DASHBOARD_START_S = 60.0


def run_job(arguments: Sequence[str], launch: LaunchConfig) -> None:
    """Run ``python -m milcore.cluster ARGUMENTS`` as a Ray job and wait for its end.

    It runs on the cluster at ``launch.ray_address``, and is stopped when this process is (SIGTERM, Ctrl-C). The cluster
    has credentials of its own: none are sent with the job, since its dashboard shows what is.

    Raises:
        InputError: the job's input cannot be used.
        ClusterError: no cluster answers, or the job failed; the text has the reason.
    """
    client = _client(launch.ray_address)
    entrypoint = shlex.join(["python", "-m", "milcore.cluster", *arguments])
    step, folder_uri, *_ = arguments
    key = f"milcore-{hashlib.sha256(entrypoint.encode()).hexdigest()[:16]}"
    job_id = _submit(client, key, entrypoint, logged_attempts(folder_uri, step))
    with (
        JobLog(log_uri(folder_uri, step, job_id.rpartition("-r")[2])) as log,
        on_termination(lambda: client.stop_job(job_id)),
    ):
        job = _follow(client, job_id, log)
    if job.status == JobStatus.SUCCEEDED:
        return
    reason = log.last_line or redact(one_line(job.message or ""))
    if job.driver_exit_code == InputError.exit_code:
        raise InputError(reason)
    raise ClusterError(f"Ray job {job_id} at {launch.ray_address} ended as {job.status}: {reason}")


def _client(address: str) -> JobSubmissionClient:
    """A client of the dashboard, once it answers.

    Raises:
        InputError: it asks for a token that this process has not.
        ClusterError: it does not answer within DASHBOARD_START_S, or has another version.
    """
    deadline = time.monotonic() + DASHBOARD_START_S
    log_once = functools.cache(log_line)  # a reason is a line, however often it is met
    while True:
        try:
            return JobSubmissionClient(address)
        except AuthenticationError as error:
            raise InputError(
                f"the Ray dashboard at {address} refuses this process; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
                "(or RAY_AUTH_TOKEN_PATH) to the cluster's token"
            ) from error
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            line = f"no Ray dashboard answers at {address}: {reason}"
            if not _may_be_starting(error) or time.monotonic() >= deadline:
                raise ClusterError(line) from error
            log_once(f"{line}; trying again for {DASHBOARD_START_S:.0f} s")
        time.sleep(SECONDS_BETWEEN_POLLS)


def _may_be_starting(error: Exception) -> bool:
    """True where nobody listens yet, or a proxy answers in its place."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, ConnectionError) if status is None else status in (502, 503, 504)


def _submit(client: JobSubmissionClient, key: str, entrypoint: str, logged: Sequence[int]) -> str:
    """Start the next attempt of a job unless one runs already; returns its id.

    An id is never given twice: Ray would take the supervisor of an attempt that ends at this moment for the next one's.
    Nor is the number of a log that the folder keeps, of other settings or of a cluster that is gone.
    """
    attempts = {job.submission_id or "": job for job in client.list_jobs()}
    earlier = {name: job for name, job in attempts.items() if name.rpartition("-r")[0] == key}
    running = next((name for name, job in earlier.items() if not job.status.is_terminal()), None)
    if running is not None:
        log_line(f"Ray job {running} runs already: following it")
        return running
    job_id = f"{key}-r{1 + max([*(int(name.rpartition('-r')[2]) for name in earlier), *logged], default=-1)}"
    variables = {**forwarded_variables(), IN_JOB: "1"}
    client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env={"env_vars": variables})
    log_line(f"Ray job {job_id}: {entrypoint}")
    return job_id


def _follow(client: JobSubmissionClient, job_id: str, log: JobLog) -> JobDetails:
    """Add to the log as it grows; returns its details once it has ended.

    A dashboard that does not answer is polled again, up to FAILED_POLLS_IN_A_ROW times.
    """
    shown = failed_polls = 0
    while True:
        try:
            job = client.get_job_info(job_id)
            text = client.get_job_logs(job_id)
        except (OSError, RuntimeError) as error:
            failed_polls += 1
            if failed_polls == FAILED_POLLS_IN_A_ROW:
                raise ClusterError(f"lost the dashboard of Ray job {job_id}: {error}") from error
            time.sleep(SECONDS_BETWEEN_POLLS)
            continue
        failed_polls = 0
        end = len(text) if job.status.is_terminal() else text.rfind("\n") + 1
        for line in text[shown:end].splitlines():
            log.add(line)
        shown = max(shown, end)
        if job.status.is_terminal():
            return job
        time.sleep(SECONDS_BETWEEN_POLLS)
