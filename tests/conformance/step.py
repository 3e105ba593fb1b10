"""A pipeline's step as a pod: started, watched, killed, ended."""

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from kubernetes.client.exceptions import ApiException

from milcore.cluster.jobs.kubernetes import BAD_REQUEST
from milcore.cluster.jobs.pods import Pod
from tests.conformance import objects
from tests.conformance.case import UnexpectedError, expect
from tests.conformance.cluster import Cluster, kubectl
from tests.conformance.objects import PROFILE_FOLDER, WORKERS, Json

# seconds until a step ends, a pod starts (with the pull of the image), a job runs or goes on, what is deleted is gone
END_S, START_S, RUN_S, FREE_S = 1800.0, 600.0, 900.0, 60.0
LINES = 3  # of a log that a failure quotes
PID_FILE = "/tmp/step.pid"  # noqa: S108 - of the pod
# the program's process is another than the container's, and can be killed while the pod stays
KILLABLE = f'"$@" & echo $! > {PID_FILE}; wait $!'
# Ray collects a report a second: some minutes, whatever an epoch takes
EPOCHS = "200"
TRAIN = (
    "--epochs", EPOCHS, "--patience", EPOCHS, "--checkpoint-every", "5", "--hidden", "64", "--attention-hidden", "32",
)  # fmt: skip


class Step:
    """Pod of a step; it is gone when its context ends.

    Args:
        cluster: namespace.
        name: of the pod.
        command: of its container.
        run_id: of the pipeline run.
        changes: as of ``step_pod``.
    """

    def __init__(self, cluster: Cluster, name: str, command: Sequence[str], run_id: str = "", **changes: Any) -> None:
        self.cluster, self.name, self.run_id = cluster, name, run_id or f"{cluster.run_id}-{name}"
        self._body = objects.step_pod(name, command, cluster.settings, self.run_id, **changes)
        self._path = cluster.api.of_namespace("pods", name)

    def __enter__(self) -> Self:
        self.cluster.create("pods", self._body)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()

    def delete(self, grace_s: int = 0) -> None:
        """Delete the pod; with 0 its processes are killed at once."""
        self.cluster.delete(self._path, gracePeriodSeconds=str(grace_s))

    def state(self) -> Json:
        """State of the container; empty before it has one."""
        pod = self.cluster.get(self._path) or {"status": {}}
        return next((each["state"] for each in pod["status"].get("containerStatuses", [])), {})

    def log(self) -> str:
        """The log so far."""
        try:
            return self.cluster.api.text(f"{self._path}/log")
        except ApiException as error:
            if error.status == BAD_REQUEST:  # its container has not started
                return ""
            raise

    def wait_for_line(self, pattern: str, seconds: float = RUN_S) -> None:
        """Wait until the log has a line."""

        def look() -> bool:
            has_ended, log = "terminated" in self.state(), self.log()
            has_line = re.search(pattern, log) is not None
            expect(has_line or not has_ended, f"ended before a line {pattern!r}: {_tail(log)}")
            return has_line

        self.cluster.until(look, seconds, f"a line {pattern!r} of {self.name}")

    def end(self, seconds: float = END_S) -> tuple[int, str]:
        """Exit code and log, once it has ended."""
        try:
            state = self.cluster.until(self._terminated, seconds, f"the end of {self.name}")
        except UnexpectedError as error:
            raise UnexpectedError(f"{error}; its log: {_tail(self.log())}") from None
        return int(state["exitCode"]), self.log()

    def _terminated(self) -> Json | None:
        state = self.state()
        waiting = state.get("waiting", {}).get("reason", "")
        expect(waiting in {"", "ContainerCreating", "PodInitializing"}, f"{self.name} waits: {waiting}")
        return state.get("terminated")

    def succeed(self, seconds: float = END_S) -> str:
        """The log of a step that has ended well."""
        code, log = self.end(seconds)
        expect(code == 0, f"exit code {code}: {_tail(log)}")
        return log

    def fail(self, *words: str) -> str:
        """The line with these words of a step that has failed."""
        code, log = self.end()
        expect(code != 0, f"exit code 0: {_tail(log)}")
        line = next((line for line in log.splitlines() if all(word in line for word in words)), None)
        expect(line is not None, f"exit code {code}, no line with {', '.join(words)}: {_tail(log)}")
        return f"exit code {code}: {line}"

    def wait_for_removal(self, seconds: float = FREE_S) -> None:
        """Wait until KubeRay has removed the step's RayJobs."""
        self.cluster.until(lambda: not self.cluster.rayjobs(self.run_id), seconds, f"the RayJobs of {self.name} gone")

    def running_job(self) -> str:
        """Name of the step's RayJob, once training is under way and has a checkpoint."""
        self.wait_for_line(r"epoch [1-9]\d+/")
        names = [str(each["metadata"]["name"]) for each in self.cluster.rayjobs(self.run_id)]
        expect(len(names) == 1, f"RayJobs {names}")
        return names[0]

    def kill_process(self) -> None:
        """Kill the step's program, not its pod."""
        command = ("--", "sh", "-c", f"kill -KILL $(cat {PID_FILE})")
        kubectl("exec", "-n", self.cluster.name, self.name, *command)


def kill_pod(cluster: Cluster, job: str, role: str) -> str:
    """Kill a pod of a RayJob; returns its name."""
    pods: list[Pod] = cluster.until(
        lambda: [pod for pod in cluster.jobs.pods(job) if pod.role == role and pod.start], START_S, f"a {role} of {job}"
    )
    cluster.delete(cluster.api.of_namespace("pods", pods[0].name), gracePeriodSeconds="0")
    return pods[0].name


def launch_flags(address: str, profile: str = "works") -> tuple[str, ...]:
    """Flags of a command that computes on a cluster."""
    flags = ("--ray-address", address, "--workers", str(WORKERS))
    return (*flags, *(("--cluster-profile", f"{PROFILE_FOLDER}/{profile}.yaml") if address == "rayjob" else ()))


def train_command(cluster: Cluster, run: str, profile: str = "works") -> tuple[str, ...]:
    """A training of some minutes by ``rayjob``."""
    return ("milcore", "train", cluster.uri("store"), cluster.uri(run), *TRAIN, *launch_flags("rayjob", profile))


def _tail(log: str) -> str:
    return " | ".join(log.splitlines()[-LINES:])
