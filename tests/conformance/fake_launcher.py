"""The launcher on a fake API that plays KubeRay by recorded statuses and events."""

import contextlib
import io
from collections.abc import Callable
from typing import NamedTuple

from kubernetes import client

from milcore.cluster.jobs import rayjob
from milcore.cluster.jobs.kubernetes import RayJobs
from milcore.cluster.jobs.profile import ClusterProfile
from milcore.cluster.jobs.rayjob_spec import JobRequest, Owner, job_key
from milcore.errors import MILError
from tests.cluster.http_api import serving
from tests.cluster.jobs.kuberay import FakeKubeRay, Fault, pod
from tests.conformance.case import Clock, expect
from tests.conformance.recordings import (
    DONE,
    HEAD_LOST,
    IMAGE,
    NEW,
    NOT_SUBMITTED,
    QUOTA,
    RIGHT,
    RUNNING,
    SECRET,
    STARTING,
    SUPERVISOR_LOST,
    SUSPENDED,
    SUSPENDING,
    Json,
    Recording,
)

REQUEST = JobRequest("run-1", "train", ("train", "s3://b/run", "--workers", "2"), 2, use_gpu=False)
STEP = rayjob.StepEnvironment("run-1", "mil", Owner("pod-1", "uid-1"), None)
RETRY = STEP._replace(owner=Owner("pod-2", "uid-2"))
PROFILE = ClusterProfile(pre_running_deadline_s=180)
FIRST = f"{job_key(REQUEST)}-r0"
LOG = [f"milcore: epoch {k}/3" for k in range(1, 4)]
WORKER = f"{FIRST}-abcde-cpu-worker-x7k2p"


class KilledError(BaseException):
    """The launcher's process is gone without a last word."""


def killed(_: float) -> None:
    raise KilledError


def _no_wait(_: float) -> None:
    """The fake is at its next state at once."""


class Launch(NamedTuple):
    """A launch that has ended: its error, if any, and its lines."""

    error: MILError | None
    lines: list[str]


def launch(
    fake: FakeKubeRay,
    step: rayjob.StepEnvironment = STEP,
    pause: Callable[[float], None] = _no_wait,
    profile: ClusterProfile = PROFILE,
) -> Launch:
    """Run the launcher to its end."""
    error, log = None, io.StringIO()
    with serving(fake) as address, contextlib.redirect_stderr(log):
        api = client.ApiClient(client.Configuration(host=address))
        launcher = rayjob.Launcher(RayJobs(api, "mil", waits_s=()), REQUEST, profile, step, pause)
        try:
            launcher.run()
        except MILError as failure:
            error = failure
    return Launch(error, log.getvalue().splitlines())


def kuberay(*lives: list[Recording | None]) -> FakeKubeRay:
    """KubeRay, and the states that each job comes to."""
    return FakeKubeRay(*([None if each is None else each.value for each in life] for life in lives))


def submit(_: None, clock: Clock) -> str:
    fake = kuberay([NEW, STARTING, RUNNING, DONE])
    ended = launch(fake)
    clock.step("ended")
    expect(ended.error is None, f"{ended.error}")
    expect(fake.created == [FIRST], f"created {fake.created}")
    expect(not fake.jobs, f"left behind: {list(fake.jobs)}")
    return "one RayJob, ended, removed"


def follow(_: None, clock: Clock) -> str:
    fake = kuberay([STARTING, *[RUNNING] * 4, DONE])
    log = fake.logs.setdefault(FIRST, [])
    lines = iter(LOG)
    ended = launch(fake, pause=lambda _: log.extend([line] if (line := next(lines, None)) else []))
    clock.step("ended")
    shown = [line for line in ended.lines if line.startswith("epoch")]
    expect(shown == [line.removeprefix("milcore: ") for line in LOG], f"log {shown}")
    states = [line for line in ended.lines if ", job " in line]
    expect(len(states) == 3, f"states {states}")
    return f"{len(shown)} lines once and in order, {len(states)} states"


def adopt(_: None, clock: Clock) -> str:
    fake, kept = kuberay([STARTING, RUNNING, DONE]), PROFILE.model_copy(update={"kept_s": 1})
    with contextlib.suppress(KilledError):
        launch(fake, pause=killed, profile=kept)
    clock.step("killed")
    ended = launch(fake, step=RETRY, profile=kept)
    clock.step("ended")
    expect(ended.error is None, f"{ended.error}")
    expect(fake.created == [FIRST], f"created {fake.created}")
    (owner,) = fake.jobs[FIRST]["metadata"]["ownerReferences"]
    expect(owner["uid"] == "uid-2", f"owner {owner['name']}")
    return "followed by the next step, which owns it"


def head_lost(_: None, clock: Clock) -> str:
    return _submitted_again(kuberay([RUNNING, HEAD_LOST], [RUNNING, DONE]), clock)


def supervisor_lost(_: None, clock: Clock) -> str:
    return _submitted_again(kuberay([RUNNING, SUPERVISOR_LOST], [RUNNING, DONE]), clock)


def submitter_lost(_: None, clock: Clock) -> str:
    return _submitted_again(kuberay([NOT_SUBMITTED], [RUNNING, DONE]), clock)


def deleted(_: None, clock: Clock) -> str:
    return _submitted_again(kuberay([RUNNING, None], [RUNNING, DONE]), clock)


def _submitted_again(fake: FakeKubeRay, clock: Clock) -> str:
    waited: list[float] = []
    ended = launch(fake, pause=waited.append)
    clock.step("ended")
    expect(ended.error is None, f"{ended.error}")
    # the name of a RayJob that is gone, with its pods, is free again
    expect(len(fake.created) == 2, f"created {fake.created}")
    expect(rayjob.SECONDS_BEFORE_NEXT_ATTEMPT in waited, f"no pause before the next attempt: {waited}")
    return f"submitted again after {rayjob.SECONDS_BEFORE_NEXT_ATTEMPT:.0f} s, ended"


def suspended(_: None, clock: Clock) -> str:
    fake = kuberay([RUNNING, SUSPENDING, SUSPENDED, NEW, STARTING, RUNNING, DONE])
    ended = launch(fake)
    clock.step("ended")
    expect(ended.error is None, f"{ended.error}")
    expect(fake.created == [FIRST], f"created {fake.created}")
    return "waited for, ended"


def quota(_: None, clock: Clock) -> str:
    fake = kuberay([RUNNING])
    message = QUOTA.value["message"].format(cluster=f"{FIRST}-abcde")
    about = {"metadata": {}, "involvedObject": {"name": f"{FIRST}-abcde"}}
    fake.events = [{**about, "reason": QUOTA.value["reason"], "message": message}]
    return _given_up(fake, clock, "FailedToCreateWorkerPod", "exceeded quota: conformance")


def image(_: None, clock: Clock) -> str:
    fake = kuberay([STARTING])
    fake.pods = [_waiting(WORKER, IMAGE)]
    return _given_up(fake, clock, "ImagePullBackOff", "milcore:0.0.0-none")


def secret(_: None, clock: Clock) -> str:
    fake = kuberay([STARTING])
    fake.pods = [_waiting(WORKER, SECRET)]
    return _given_up(fake, clock, "CreateContainerConfigError", 'secret "milcore-none" not found')


def _waiting(name: str, reason: Recording) -> Json:
    container = {"name": "ray-worker", "image": "milcore", "imageID": "", "ready": False, "restartCount": 0}
    states = [{**container, "state": {"waiting": reason.value}}]
    return pod(name, {"ray.io/node-type": "worker"}, phase="Pending", containerStatuses=states)


def _given_up(fake: FakeKubeRay, clock: Clock, *words: str) -> str:
    """The reason is told each minute, and ends the step."""
    ended = launch(fake)
    clock.step("given up")
    waits = [line for line in ended.lines if " waits: " in line]
    expect(waits and all(word in waits[0] for word in words), f"lines of what it waits for: {waits}")
    expect(ended.error is not None, "the step went on")
    expect(all(word in f"{ended.error}" for word in words), f"{ended.error}")
    expect(fake.created == [FIRST], f"created {fake.created}")
    return f"{waits[0].partition(' waits: ')[2]}; the step ends with it"


def right(_: None, clock: Clock) -> str:
    fake = kuberay()
    fake.faults["list", "rayjobs"] = [Fault(403, message=RIGHT.value["message"])]
    ended = launch(fake)
    clock.step("refused")
    expect("does not let this service account list rayjobs in namespace mil" in f"{ended.error}", f"{ended.error}")
    return f"{ended.error}".partition(";")[0]
