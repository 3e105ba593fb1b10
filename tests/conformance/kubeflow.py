"""Kubeflow Pipelines at a host: runs of the pipelines, followed, and removed at the end."""

import contextlib
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from kfp_server_api import ApiException

from tests.conformance import objects
from tests.conformance.case import expect
from tests.conformance.cluster import Cluster
from tests.conformance.installation import LOCAL
from tests.conformance.step import Step

ROOT = Path(__file__).resolve().parents[2]
RUNNER, EDITOR = "pipeline-runner", "default-editor"  # account of steps, standalone and in a profile
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "ERROR", "CANCELED")
RUN_S = 7200
JSON_OF = "import json; from milcore.runtime import storage; print(json.dumps({expression}))"


def own_lines(output: str) -> list[str]:
    """The run's id and its states; kfp's client prints links before them."""
    return [line for line in output.splitlines() if line and ": " not in line]


class Kubeflow:
    """Kubeflow Pipelines and the runs that the cases make.

    Args:
        client: of its API.
        host: its address.
        cluster: the run's own namespace, where the cohort was made.
        place: the namespace of Kubeflow's steps.
        token_file: of the API; empty: none.
        artifacts: folder of artifacts of all pipelines.
    """

    def __init__(
        self, client: Any, host: str, cluster: Cluster, place: Cluster, token_file: str = "", artifacts: str = ""
    ) -> None:
        self.client, self.host, self.cluster, self.place = client, host, cluster, place
        self.token_file, self.artifacts = token_file, artifacts
        self.experiment = f"{cluster.name}-{uuid.uuid4().hex[:6]}"
        self.runs: dict[str, str] = {}
        self.recurring: list[str] = []
        self.is_installed = False
        # a profile of a multi-user installation, or the one namespace of a standalone one
        self.is_profile = bool(client.get_kfp_healthz().multi_user)
        self.account = EDITOR if self.is_profile else RUNNER

    def install(self) -> str:
        """Give Kubeflow's namespace what an administrator gives it, where it has none of it."""
        if self.place.get(self.place.api.of_namespace("secrets", "milcore-s3")) is not None:
            return f"namespace {self.place.name} is set up already: used as it is"
        self.is_installed = True
        for body in objects.secret_bodies(self.place.settings):
            self.place.create("secrets", body)
        self.place.apply(LOCAL, standing=False, account=self.account)
        return f"namespace {self.place.name} was set up"

    def pipeline(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """``python -m pipeline`` with arguments."""
        command = [sys.executable, "-m", "pipeline", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    def submit(self, name: str, *arguments: str, wait_s: int = 0) -> "subprocess.CompletedProcess[str]":
        """``python -m pipeline submit``; the run's id is kept by a name."""
        token = ("--token-file", self.token_file) if self.token_file else ()
        profile = ("--namespace", self.place.name) if self.is_profile else ()
        place = (
            "--host",
            self.host,
            "--experiment",
            self.experiment,
            "--image",
            self.cluster.settings.image,
            *token,
            *profile,
        )
        wait = ("--wait", str(wait_s)) if wait_s else ()
        ended = self.pipeline("submit", *place, *wait, *arguments)
        lines = own_lines(ended.stdout)
        expect(lines, f"exit code {ended.returncode}: {ended.stderr[-300:]}")
        self.runs[name] = lines[0]
        return ended

    def state(self, run_id: str) -> str:
        return str(self.client.get_run(run_id).state)

    def end(self, run_id: str) -> str:
        """State of a run once it has ended."""

        def look() -> str:
            state = self.state(run_id)
            return state if state in ENDED else ""

        return str(self.cluster.until(look, RUN_S, f"the end of run {run_id}"))

    def pods(self, run_id: str) -> list[Any]:
        """Pods of a run, drivers among them."""
        path = self.place.api.of_namespace("pods")
        return list(self.place.get(path, labelSelector=f"pipeline/runid={run_id}")["items"])

    def read(self, name: str, expression: str) -> str:
        """JSON of an expression about the object store, computed in a pod.

        The store need not be reached from this machine.
        """
        with Step(self.cluster, name, ("python", "-c", JSON_OF.format(expression=expression))) as step:
            return step.succeed().splitlines()[-1]

    def experiment_id(self) -> str:
        """Id of the experiment that all runs of the cases belong to."""
        namespace = self.place.name if self.is_profile else None
        return str(self.client.get_experiment(experiment_name=self.experiment, namespace=namespace).experiment_id)

    def listed(self, experiment_id: str) -> list[Any]:
        """Runs of the experiment."""
        return self.client.list_runs(experiment_id=experiment_id, page_size=100).runs or []

    def _remove_runs(self, run_ids: list[str]) -> None:
        for run_id in run_ids:
            with contextlib.suppress(ApiException):  # one that has ended
                self.client.terminate_run(run_id)
        for run_id in run_ids:
            self.client.delete_run(run_id)

    def remove(self) -> None:
        """Remove what the cases made: recurring runs first, which would make more."""
        for recurring in self.recurring:
            with contextlib.suppress(ApiException):
                self.client.delete_recurring_run(recurring)
        with contextlib.suppress(ApiException, ValueError):  # no run was submitted
            experiment = self.experiment_id()
            self._remove_runs([run.run_id for run in self.listed(experiment)])
            self.client.delete_experiment(experiment)
        if self.is_installed:
            self.place.remove(LOCAL, standing=False, account=self.account)
            for body in objects.secret_bodies(self.place.settings):
                self.place.delete(self.place.api.of_namespace("secrets", body["metadata"]["name"]))
