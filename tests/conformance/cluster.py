"""A namespace of a cluster, and calls of its API that the cases make."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from milcore.cluster.doctor.api_server import NOT_FOUND, ApiServer
from milcore.cluster.jobs.kubernetes import CONFLICT, PLURAL, RAY, RayJobs
from milcore.cluster.jobs.rayjob_spec import RUN_LABEL, short_hash
from milcore.errors import InputError
from tests.conformance import objects
from tests.conformance.case import UnexpectedError
from tests.conformance.objects import Json, Settings

POLL_S = 2.0


class Cluster:
    """A namespace and what is done in it.

    Args:
        api: client of the cluster's API.
        name: of the namespace.
        settings: image and object store.
        pause: waits a number of seconds between looks.
    """

    def __init__(
        self, api: client.ApiClient, name: str, settings: Settings, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.name, self.settings, self._client, self._pause = name, settings, api, pause
        self.api = ApiServer(api, name)
        self.jobs = RayJobs(api, name)
        self.run_id = f"{name}-{uuid.uuid4().hex[:6]}"

    def beside(self, suffix: str) -> "Cluster":
        """Another namespace of the same run."""
        return Cluster(self._client, f"{self.name}-{suffix}", self.settings, self._pause)

    def uri(self, *parts: str) -> str:
        """URI of what this run writes."""
        return "/".join((self.settings.uri, self.name, *parts))

    def create_namespace(self) -> None:
        self.api.post("/api/v1/namespaces", objects.namespace(self.name))

    def delete_namespace(self) -> None:
        self.delete(f"/api/v1/namespaces/{self.name}")

    def create(self, kind: str, body: Json, group: str = "api/v1", **query: str) -> Json:
        """Create an object of the namespace."""
        path = self.api.of_namespace(kind, group=group)
        return self.api.post(f"{path}?{'&'.join(f'{k}={v}' for k, v in query.items())}" if query else path, body)

    def get(self, path: str, **query: str) -> Any:
        """Answer of a GET; None where there is no such thing."""
        try:
            return self.api.get(path, **query)
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def delete(self, path: str, **query: str) -> None:
        """Delete an object; a missing one is no error."""
        try:
            self.api.delete(path, **query)
        except ApiException as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise

    def suspend(self, job: str, *, value: bool) -> None:
        """Set the field by which KubeRay suspends a RayJob."""
        patch = {"spec": {"suspend": value}}
        client.CustomObjectsApi(self._client).patch_namespaced_custom_object(*RAY, self.name, PLURAL, job, patch)

    def prepare(self) -> None:
        """Create what a namespace needs before the overlay: secrets, account, profiles."""
        for body in objects.secret_bodies(self.settings):
            self.create("secrets", body)
        self.create("serviceaccounts", objects.service_account())
        self.create("configmaps", objects.profiles(self.settings))

    def apply(self, overlay: str, *flags: str, **options: Any) -> str:
        """Output of ``kubectl apply -k`` of an overlay on one of the project's.

        Options are those of ``kustomization``.
        """
        return self._kubectl_k("apply", overlay, *flags, **options)

    def remove(self, overlay: str, **options: Any) -> str:
        """Remove what ``apply`` made."""
        return self._kubectl_k("delete", overlay, "--ignore-not-found", **options)

    def _kubectl_k(self, verb: str, overlay: str, *flags: str, **options: Any) -> str:
        with tempfile.TemporaryDirectory() as folder:
            body = objects.kustomization(Path(folder).resolve(), overlay, self.name, self.settings, **options)
            (Path(folder) / "kustomization.yaml").write_text(json.dumps(body))  # JSON is YAML
            return kubectl(verb, "-k", folder, *flags)

    def rayjobs(self, run_id: str) -> list[Json]:
        """RayJobs of a pipeline run."""
        return self.jobs.labelled({RUN_LABEL: short_hash(run_id)})

    def until(self, condition: Callable[[], Any], seconds: float, expected: str) -> Any:
        """The first true value of a condition.

        Raises:
            UnexpectedError: there is none in time.
        """
        for _ in range(max(1, int(seconds / POLL_S))):
            if value := condition():
                return value
            self._pause(POLL_S)
        raise UnexpectedError(f"not after {seconds:.0f} s: {expected}")


def kubectl(*arguments: str) -> str:
    """Output of a kubectl command, which finds the cluster as the API's client does.

    Raises:
        CalledProcessError: it failed.
        InputError: there is no kubectl.
    """
    beside = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
    program = shutil.which("kubectl", path=beside)
    if program is None:
        raise InputError("kubectl: expected it on PATH, got none; allowed: your own, or that of `make kubectl`")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout
