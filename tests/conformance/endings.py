"""Cases of a training by ``rayjob`` that is ended or suspended."""

from tests.conformance.case import Clock, expect
from tests.conformance.cluster import Cluster
from tests.conformance.step import FREE_S, RUN_S, Step, train_command

GRACE_S = 30  # Kubernetes' time between SIGTERM and SIGKILL


def terminate(cluster: Cluster, clock: Clock) -> str:
    """SIGTERM to the step frees its cluster."""
    with Step(cluster, "terminated", train_command(cluster, "run-terminated")) as step:
        job = step.running_job()
        clock.step("training")
        step.delete(GRACE_S)
        clock.step("SIGTERM")
        step.wait_for_removal()
        clock.step("RayJob gone")
        cluster.until(lambda: not cluster.jobs.pods(job), FREE_S, f"pods of {job} gone")
        clock.step("pods gone")
    return "RayJob and pods gone"


def suspend(cluster: Cluster, clock: Clock) -> str:
    """A RayJob that is suspended frees its pods, and goes on when it is resumed."""
    with Step(cluster, "suspended", train_command(cluster, "run-suspended")) as step:
        job = step.running_job()
        clock.step("training")
        cluster.suspend(job, value=True)
        cluster.until(lambda: _deployment(cluster, job) == "Suspended", RUN_S, f"RayJob {job} suspended")
        expect("terminated" not in step.state(), "the step ended with the suspension")
        clock.step("suspended")
        cluster.suspend(job, value=False)
        step.wait_for_line("going on at epoch")
        clock.step("going on")
        step.succeed()
        clock.step("ended")
    return "waited for, went on at its checkpoint, ended"


def _deployment(cluster: Cluster, job: str) -> str:
    body = cluster.jobs.get(job) or {}
    return str(body.get("status", {}).get("jobDeploymentStatus", ""))
