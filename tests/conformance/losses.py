"""Cases of losses under a training by ``rayjob``: head, worker, submitter, the step itself, the RayJob."""

from collections.abc import Callable

from milcore.cluster.jobs.pods import HEAD, SUBMITTER, WORKER
from tests.conformance.case import Clock, expect
from tests.conformance.cluster import Cluster
from tests.conformance.step import KILLABLE, Step, kill_pod, train_command

KILLED = 137
COLLECTION_S = 120.0  # of objects whose owner is gone
GOES_ON = "going on at epoch"


def head(cluster: Cluster, clock: Clock) -> str:
    return _disturb(cluster, clock, "head", lambda job: kill_pod(cluster, job, HEAD), GOES_ON)


def worker(cluster: Cluster, clock: Clock) -> str:
    return _disturb(cluster, clock, "worker", lambda job: kill_pod(cluster, job, WORKER), GOES_ON)


def submitter(cluster: Cluster, clock: Clock) -> str:
    return _disturb(cluster, clock, "submitter", lambda job: kill_pod(cluster, job, SUBMITTER), "")


def rayjob(cluster: Cluster, clock: Clock) -> str:
    """Somebody deletes the RayJob underneath."""
    return _disturb(cluster, clock, "rayjob", cluster.jobs.delete, GOES_ON)


def _disturb(cluster: Cluster, clock: Clock, name: str, disturb: Callable[[str], object], line: str) -> str:
    """A training that is disturbed ends well, from its checkpoint, and leaves no RayJob."""
    with Step(cluster, f"lost-{name}", train_command(cluster, f"run-lost-{name}")) as step:
        job = step.running_job()
        clock.step("training")
        disturb(job)
        clock.step("killed")
        if line:
            step.wait_for_line(line)
            clock.step("going on")
        step.succeed()
        clock.step("ended")
        step.wait_for_removal()
        clock.step("removed")
    return "went on at its checkpoint, ended" if line else "ended"


def step_process(cluster: Cluster, clock: Clock) -> str:
    """The launcher is killed; its retry, another pod of the same run, follows the same RayJob."""
    command = train_command(cluster, "run-lost-step")
    with Step(cluster, "lost-step", ("sh", "-c", KILLABLE, "step", *command)) as first:
        job = first.running_job()
        clock.step("training")
        first.kill_process()
        code, _ = first.end()
        expect(code == KILLED, f"exit code {code} of a launcher that was killed")
        clock.step("killed")
        with Step(cluster, "lost-step-retry", command, first.run_id) as retry:
            retry.wait_for_line(f"RayJob {job} is there already: following it")
            clock.step("followed")
            retry.succeed()
            clock.step("ended")
    return "its retry followed the RayJob to its end"


def step_pod(cluster: Cluster, clock: Clock) -> str:
    """The step's pod is gone at once: Kubernetes removes the RayJob that it owns."""
    with Step(cluster, "lost-pod", train_command(cluster, "run-lost-pod")) as step:
        step.running_job()
        clock.step("training")
        step.delete()
        clock.step("killed")
        step.wait_for_removal(COLLECTION_S)
        clock.step("removed")
    return "its RayJob was removed with it"
