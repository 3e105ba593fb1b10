"""Cases of steps that compute on a cluster undisturbed: encode, train and tune, by ``http://`` and by ``rayjob``."""

import re

from tests.conformance.case import Clock, expect
from tests.conformance.cluster import Cluster
from tests.conformance.step import Step, launch_flags

STANDING, RAYJOB = "http://milcore-head-svc:8265", "rayjob"
# of `milcore train` and `milcore tune`: minutes on two CPUs
SHORT = ("--epochs", "10", "--hidden", "64", "--attention-hidden", "32")
SWEEP = (*SHORT, "--trials", "2", "--pooling", "max,gated_attention")


def encode_standing(cluster: Cluster, clock: Clock) -> str:
    return _run(cluster, clock, STANDING, "encode-http", ("encode", cluster.uri("store"), "--name", "by_http"))


def train_standing(cluster: Cluster, clock: Clock) -> str:
    command = ("train", cluster.uri("store"), cluster.uri("run-http"), "--features", "by_http", *SHORT)
    return _run(cluster, clock, STANDING, "train-http", command)


def tune_standing(cluster: Cluster, clock: Clock) -> str:
    command = ("tune", cluster.uri("store"), cluster.uri("sweep-http"), "--features", "by_http", *SWEEP)
    return _run(cluster, clock, STANDING, "tune-http", command)


def encode_rayjob(cluster: Cluster, clock: Clock) -> str:
    return _run(cluster, clock, RAYJOB, "encode-rayjob", ("encode", cluster.uri("store")))


def train_rayjob(cluster: Cluster, clock: Clock) -> str:
    return _run(cluster, clock, RAYJOB, "train-rayjob", ("train", cluster.uri("store"), cluster.uri("run"), *SHORT))


def tune_rayjob(cluster: Cluster, clock: Clock) -> str:
    return _run(cluster, clock, RAYJOB, "tune-rayjob", ("tune", cluster.uri("store"), cluster.uri("sweep"), *SWEEP))


def _run(cluster: Cluster, clock: Clock, address: str, name: str, command: tuple[str, ...]) -> str:
    """A step ends well, and its clusters are gone."""
    with Step(cluster, name, ("milcore", *command, *launch_flags(address))) as step:
        log = step.succeed()
        clock.step("ended")
        if address == RAYJOB:
            step.wait_for_removal()
            clock.step("removed")
    kind = "RayJob" if address == RAYJOB else "Ray job"
    expect(f"{kind} " in log, f"the log names no {kind}")
    return f"exit code 0, {kind} ended" + (", removed" if address == RAYJOB else "")


def follow(cluster: Cluster, clock: Clock) -> str:
    """The step's log has each epoch once, in order, and the states of the RayJob."""
    command = ("milcore", "train", cluster.uri("store"), cluster.uri("run-follow"), *SHORT, *launch_flags(RAYJOB))
    with Step(cluster, "follow", command) as step:
        log = step.succeed()
    clock.step("ended")
    epochs = [int(number) for number in re.findall(r"^epoch (\d+)/", log, re.MULTILINE)]
    expect(epochs and epochs == sorted(set(epochs)), f"epochs {epochs}")
    states = re.findall(r"^RayJob \S+: (\w+), job", log, re.MULTILINE)
    expect({"Initializing", "Running"} <= set(states), f"states {states}")
    return f"{len(epochs)} lines of epochs once and in order, {len(states)} states"
