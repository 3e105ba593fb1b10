"""The launcher of RayJobs through every path that KubeRay, Kubernetes and the pipeline can send it on."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from milcore.cluster.jobs.assessment import assess
from milcore.cluster.jobs.heartbeat import keep_heartbeat
from milcore.cluster.jobs.kubernetes import RayJobs
from milcore.cluster.jobs.profile import ClusterProfile
from milcore.cluster.jobs.rayjob import Launcher, StepEnvironment, delete_run_jobs
from milcore.cluster.jobs.rayjob_spec import JobRequest, Owner, job_key
from milcore.errors import ClusterError, InputError
from tests.cluster.http_api import serving
from tests.cluster.jobs.kuberay import Call, FakeKubeRay, Fault

REQUEST = JobRequest("run-1", "train", ("train", "s3://b/run", "--workers", "2"), 2, use_gpu=False)
ENVIRONMENT = StepEnvironment("run-1", "mil", Owner("pod-1", "uid-1"), None)

Status = dict[str, Any]


def status(deployment: str = "", job: str = "", reason: str = "", message: str = "") -> Status:
    return {"jobDeploymentStatus": deployment, "jobStatus": job, "reason": reason, "message": message}


NEW: Status = {}
STARTING = status("Initializing")
RUNNING = status("Running", "RUNNING")
DONE = status("Complete", "SUCCEEDED")
# what Ray says of a driver that ended itself (job_supervisor.py), with the last lines of its log
EXIT = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n{}\n"
DRIVER_FAILED = status("Failed", "FAILED", "AppFailed", EXIT.format(1, "KeyError: 'x'"))
BAD_INPUT = status("Failed", "FAILED", "AppFailed", EXIT.format(2, "milcore: no run at s3://b/run; train first"))
BAD_URI = status(
    "Failed", "FAILED", "AppFailed", EXIT.format(2, "milcore: manifest: nothing at https://ann:key@lab/m.csv")
)
# what KubeRay says of the rest (rayjob_controller.go), and Ray of a job whose supervisor is gone (job_manager.py)
CLUSTER_LOST = status("Failed", "RUNNING", "JobStatusCheckTimeoutExceeded", "the dashboard does not answer")
HEAD_LOST = status("Failed", "RUNNING", "AppFailed", "Submitter completed but Ray job not found in RayCluster.")
SUPERVISOR_LOST = status("Failed", "FAILED", "AppFailed", "Job supervisor actor died: The actor died unexpectedly")
NEVER_ENDED = status(
    "Failed", "FAILED", "JobDeploymentStatusTransitionGracePeriodExceeded",
    "The RayJob submitter finished at 2026-01-01 00:00:00 but the ray job did not reach terminal state within 5m0s",
)  # fmt: skip
NOT_SUBMITTED = status(
    "Failed", "", "SubmissionFailed",
    "Job submission has failed. Reason: BackoffLimitExceeded. Message: Job has reached the specified backoff limit",
)  # fmt: skip
LATE = status("Failed", "RUNNING", "DeadlineExceeded", "The RayJob has passed the activeDeadlineSeconds.")
NEVER_RAN = status("Failed", "", "PreRunningDeadlineExceeded", "it did not run in time")
INVALID = status("ValidationFailed", "", "ValidationFailed", "The RayJob spec is invalid: no such field")


class KilledError(BaseException):
    """The process is gone without a last word."""


class Kubernetes:
    """A fake API and launchers that talk to it."""

    def __init__(self, fake: FakeKubeRay, address: str) -> None:
        self.fake = fake
        self.address = address

    def jobs(self) -> RayJobs:
        settings = client.Configuration(host=self.address)
        settings.retries = False
        return RayJobs(client.ApiClient(settings), "mil", waits_s=(0.01, 0.01))

    def launch(
        self,
        request: JobRequest = REQUEST,
        environment: StepEnvironment = ENVIRONMENT,
        profile: ClusterProfile | None = None,
        pause: Callable[[float], None] = lambda _: None,
    ) -> None:
        Launcher(self.jobs(), request, profile or ClusterProfile(), environment, pause).run()


MakeKubernetes = Callable[..., Kubernetes]


@pytest.fixture
def kubernetes() -> Iterator[MakeKubernetes]:
    with contextlib.ExitStack() as stack:

        def make(*lives: list[Status | None]) -> Kubernetes:
            fake = FakeKubeRay(*lives)
            return Kubernetes(fake, stack.enter_context(serving(fake)))

        yield make


def test_a_job_that_succeeds_is_made_once_and_its_log_shown(
    kubernetes: MakeKubernetes, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = kubernetes([NEW, STARTING, RUNNING, DONE])
    name = expected_name(0)
    cluster.fake.logs[name] = ["milcore: epoch 1/2", "milcore: epoch 2/2"]
    cluster.launch()
    assert cluster.fake.created == [name]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 47
    shown = capfd.readouterr().err.splitlines()
    assert [shown.count(line) for line in ("epoch 1/2", "epoch 2/2")] == [1, 1]
    assert f"RayJob {name}: Running, job RUNNING" in shown


def expected_name(attempt: int) -> str:
    return f"{job_key(REQUEST)}-r{attempt}"


def test_the_job_belongs_to_the_pod_that_waits_for_it(kubernetes: MakeKubernetes) -> None:
    cluster = kubernetes([DONE])
    cluster.launch()
    (job,) = cluster.fake.bodies.values()
    assert job["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "pod-1", "uid": "uid-1"}]


@pytest.mark.parametrize(
    ("life", "error", "line"),
    [
        ([RUNNING, DRIVER_FAILED], ClusterError, r"failed: AppFailed: .* exit code 1: KeyError: 'x'$"),
        ([RUNNING, {**DRIVER_FAILED, "jobDeploymentStatus": "Running"}], ClusterError, "exit code 1"),
        ([RUNNING, BAD_INPUT], InputError, r"^no run at s3://b/run; train first$"),
        ([RUNNING, BAD_URI], InputError, r"^manifest: nothing at https://\*\*\*@lab/m\.csv$"),
        ([INVALID], ClusterError, "ValidationFailed: The RayJob spec is invalid: no such field"),
        ([RUNNING, LATE], ClusterError, "DeadlineExceeded: .* passed the activeDeadlineSeconds"),
        ([STARTING, NEVER_RAN], ClusterError, "PreRunningDeadlineExceeded"),
        ([RUNNING, status("Running", "STOPPED"), status("Complete", "STOPPED")], ClusterError, "job STOPPED"),
    ],
)  # fmt: skip
def test_what_another_attempt_would_meet_again_fails_at_once(
    kubernetes: MakeKubernetes, life: list[Status], error: type[Exception], line: str
) -> None:
    cluster = kubernetes(life)
    with pytest.raises(error, match=line):
        cluster.launch()
    assert cluster.fake.created == [expected_name(0)]


@pytest.mark.parametrize(
    "life",
    [
        [STARTING, RUNNING, status("Retrying", "FAILED"), STARTING, RUNNING, DONE],
        [STARTING, status("Suspending"), status("Suspended"), NEW, STARTING, RUNNING, DONE],
        [RUNNING, status("Suspending", "RUNNING"), status("Suspended"), NEW, STARTING, RUNNING, DONE],
        [status("Waiting"), RUNNING, DONE],
        [status("SomethingNew", "RUNNING"), DONE],
        [RUNNING, status("Running", "SUCCEEDED")],
        [RUNNING, status("Failed", "SUCCEEDED", "SubmissionFailed", "the submitter's exit code")],
        [RUNNING, status("Complete", "RUNNING"), DONE],
    ],
    ids=["retried", "queued", "preempted", "waiting", "unknown-state", "job-first", "submitter-lies", "job-last"],
)  # fmt: skip
def test_what_passes_is_waited_for(kubernetes: MakeKubernetes, life: list[Status]) -> None:
    cluster = kubernetes(life)
    cluster.launch()
    assert cluster.fake.created == [expected_name(0)]


@pytest.mark.parametrize(
    ("life", "line"),
    [
        ([status("Complete", "RUNNING")], "job RUNNING while its deployment is Complete"),
        ([status("Running", "FAILED", message="boom")], "job FAILED while its deployment is Running, boom"),
    ],
)
def test_states_that_contradict_each_other_are_believed_longer_than_kuberay_does(
    kubernetes: MakeKubernetes, life: list[Status], line: str
) -> None:
    cluster, waited = kubernetes(life), []
    with pytest.raises(ClusterError, match=line):
        cluster.launch(pause=waited.append)
    assert 420 <= sum(waited) <= 430


@pytest.mark.parametrize(
    "lost",
    [
        [RUNNING, CLUSTER_LOST],
        [RUNNING, HEAD_LOST],
        [RUNNING, SUPERVISOR_LOST],
        [RUNNING, NEVER_ENDED],
        [RUNNING, None],
        [NOT_SUBMITTED],
    ],
    ids=["cluster-lost", "head-lost", "supervisor-lost", "never-ended", "deleted-underneath", "submission-failed"],
)
def test_a_cluster_that_is_lost_is_made_anew_after_a_pause(
    kubernetes: MakeKubernetes, lost: list[Status | None]
) -> None:
    cluster, waited = kubernetes(lost, [RUNNING, DONE]), []
    cluster.launch(pause=waited.append)
    assert len(cluster.fake.created) == 2
    assert 30.0 in waited


def warning(about: str, message: str, when: str | None = None) -> dict[str, Any]:
    return {
        "metadata": {},
        "involvedObject": {"name": about},
        "reason": "FailedScheduling",
        "message": message,
        "lastTimestamp": when,
    }


def test_after_three_lost_clusters_the_step_fails_and_says_what_kubernetes_warned_of(
    kubernetes: MakeKubernetes,
) -> None:
    cluster, last = kubernetes(*[[RUNNING, CLUSTER_LOST]] * 3), expected_name(2)
    cluster.fake.events = [
        warning(f"{last}-abcde-cpu-worker-fghij", "no nodes", "2026-01-01T00:00:02Z"),
        warning(last, "no quota", "2026-01-01T00:00:01Z"),
        warning(f"{last}0", "another job's", "2026-01-01T00:00:03Z"),
    ]
    message = r"the dashboard does not answer \(FailedScheduling: no quota; FailedScheduling: no nodes\)$"
    with pytest.raises(ClusterError, match=message):
        cluster.launch()
    assert cluster.fake.created == [expected_name(k) for k in range(3)]


@pytest.mark.parametrize("fault", [Fault(500), Fault(503), Fault(429), Fault(0)])
@pytest.mark.parametrize("call", [("get", "rayjobs"), ("list", "pods"), ("get", "pods/log"), ("list", "rayjobs")])
def test_an_api_that_fails_twice_or_cuts_the_line_is_asked_again(
    kubernetes: MakeKubernetes, capfd: pytest.CaptureFixture[str], call: tuple[str, str], fault: Fault
) -> None:
    cluster = kubernetes([RUNNING, RUNNING, DONE])
    cluster.fake.logs[expected_name(0)] = ["milcore: epoch 1/1"]
    cluster.fake.faults[call] = [fault, fault]
    cluster.launch()
    assert capfd.readouterr().err.splitlines().count("epoch 1/1") == 1


def test_an_api_that_stays_away_ends_the_step_but_not_the_job(kubernetes: MakeKubernetes) -> None:
    cluster = kubernetes([RUNNING])
    cluster.fake.faults["get", "rayjobs"] = [Fault(500)] * 3
    with pytest.raises(ClusterError, match=r"stays away \(get rayjobs, tried 3 times\): 500"):
        cluster.launch()
    assert list(cluster.fake.jobs) == [expected_name(0)]


def test_a_creation_whose_answer_got_lost_makes_one_job(kubernetes: MakeKubernetes) -> None:
    cluster = kubernetes([RUNNING, DONE])
    cluster.fake.faults["create", "rayjobs"] = [Fault(500, after=True)]
    cluster.launch()
    assert cluster.fake.created == [expected_name(0)]


def test_a_log_that_grows_between_looks_is_shown_once_and_in_order(
    kubernetes: MakeKubernetes, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster, lines = kubernetes([RUNNING] * 5 + [DONE]), itertools.count(1)
    log = cluster.fake.logs.setdefault(expected_name(0), [])
    cluster.fake.faults["get", "pods/log"] = [Fault(0), Fault(0)]
    cluster.launch(pause=lambda _: log.append(f"milcore: line {next(lines)}"))
    shown = [line for line in capfd.readouterr().err.splitlines() if line.startswith("line")]
    assert shown == [f"line {k}" for k in range(1, 6)]


def test_a_right_that_is_missing_is_named(kubernetes: MakeKubernetes) -> None:
    cluster = kubernetes([RUNNING])
    cluster.fake.faults["create", "rayjobs"] = [Fault(403)]
    with pytest.raises(ClusterError, match="does not let this service account create rayjobs in namespace mil"):
        cluster.launch()


def killed(_: float) -> None:
    raise KilledError


def test_a_launcher_killed_and_started_again_adopts_its_job(kubernetes: MakeKubernetes) -> None:
    cluster = kubernetes([STARTING, RUNNING, DONE])
    with pytest.raises(KilledError):
        cluster.launch(pause=killed, profile=ClusterProfile(kept_s=1))
    cluster.launch(environment=ENVIRONMENT._replace(owner=Owner("pod-2", "uid-2")), profile=ClusterProfile(kept_s=1))
    (job,) = cluster.fake.jobs.values()
    assert cluster.fake.created == [expected_name(0)]
    assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == ["uid-2"]
    calls = cluster.fake.calls
    assert calls.index(Call("patch", "ray.io", "rayjobs")) < len(calls) - calls[::-1].index(
        Call("get", "ray.io", "rayjobs")
    )


def test_a_job_that_is_gone_when_it_is_to_be_adopted_is_made_anew(kubernetes: MakeKubernetes) -> None:
    cluster = kubernetes([RUNNING], [DONE])
    with pytest.raises(KilledError):
        cluster.launch(pause=killed)
    cluster.fake.faults["patch", "rayjobs"] = [Fault(404)]
    cluster.launch()
    assert cluster.fake.created == [expected_name(0), expected_name(1)]


def test_after_a_failed_job_the_next_run_makes_the_next_attempt(kubernetes: MakeKubernetes) -> None:
    cluster = kubernetes([DRIVER_FAILED], [DONE])
    kept = ClusterProfile(kept_s=1)
    with pytest.raises(ClusterError):
        cluster.launch(profile=kept)
    cluster.launch(profile=kept)
    assert cluster.fake.created == [expected_name(0), expected_name(1)]


def test_a_job_of_other_settings_on_the_same_folder_is_left_alone(kubernetes: MakeKubernetes) -> None:
    cluster = kubernetes([RUNNING])
    with pytest.raises(KilledError):
        cluster.launch(pause=killed)
    with pytest.raises(ClusterError, match="works on the same folder with other settings"):
        cluster.launch(profile=ClusterProfile(head_cpus=4))
    assert cluster.fake.created == [expected_name(0)]


PROGRAM = """
import sys
from milcore.cluster.jobs import follow, rayjob
from milcore.config import LaunchConfig
follow.SECONDS_BETWEEN_POLLS = 0.1
rayjob.run_rayjob(("train", sys.argv[1], "--workers", "2"), LaunchConfig(ray_address="rayjob", workers=2))
"""


def kubeconfig(folder: Path, address: str) -> dict[str, str]:
    """The environment of a process that finds the API by a kubeconfig."""
    places = {
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "mil"}}],
        "current-context": "x",
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **places}))
    return {**os.environ, "KUBECONFIG": str(folder / "kubeconfig"), "PIPELINE_RUN_ID": "run-1"}


def test_told_to_stop_the_launcher_deletes_its_job(kubernetes: MakeKubernetes, tmp_path: Path) -> None:
    cluster = kubernetes([RUNNING])
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=kubeconfig(tmp_path, cluster.address)
    ) as process:
        while cluster.fake.calls.count(Call("get", "ray.io", "rayjobs")) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    assert cluster.fake.jobs == {}


def test_a_driver_nobody_waits_for_ends_itself(tmp_path: Path) -> None:
    """A terminated run whose pod is kept: no handler ran, and the owner still exists."""
    program = """
        import sys, time
        from milcore.cluster.jobs.heartbeat import exit_without_heartbeat
        exit_without_heartbeat(sys.argv[1], 1.0)
        time.sleep(60)
    """
    heartbeat = str(tmp_path / "heartbeats" / "train")
    command = [sys.executable, "-c", textwrap.dedent(program), heartbeat]
    with keep_heartbeat(heartbeat, every_s=0.1):
        driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        time.sleep(3.0)
        assert driver.poll() is None, "it lives while somebody waits"
    _, message = driver.communicate(timeout=30)
    assert driver.returncode == 1
    assert f"no heartbeat at {heartbeat} for 1 s: no process follows this job" in message


def test_the_exit_handler_deletes_the_jobs_of_its_run_only(kubernetes: MakeKubernetes) -> None:
    cluster = kubernetes([RUNNING], [RUNNING])
    for run_id in ("run-1", "run-2"):
        with pytest.raises(KilledError):
            cluster.launch(request=REQUEST._replace(run_id=run_id), pause=killed)
    assert delete_run_jobs(cluster.jobs(), "run-1") == [expected_name(0)]
    assert list(cluster.fake.jobs) == cluster.fake.created[1:]


@pytest.mark.parametrize(
    "deployment", ["", "Initializing", "Running", "Waiting", "Suspending", "Suspended", "Retrying"]
)
def test_a_job_under_way_goes_on(deployment: str) -> None:
    assert assess(status(deployment, "RUNNING")).state == "going"
