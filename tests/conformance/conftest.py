"""A cluster that plays, the kubeconfig that names it, and a kubectl that tells what it was asked for."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kubernetes import client

from tests.cluster.http_api import serving_here
from tests.conformance.cluster import Cluster
from tests.conformance.objects import read_settings
from tests.conformance.stage import NAMESPACE, Stage

KEYS = {
    "AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
    "AWS_ENDPOINT_URL": "http://store:9000", "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip
# kubectl without its HTTP: what it is asked for is a line; `exec` is told to the API, as kubectl does it
KUBECTL = """#!{python}
import json, os, pathlib, sys, urllib.request
verb, *rest = sys.argv[1:]
if "-k" in rest:
    folder = pathlib.Path(rest[rest.index("-k") + 1])
    made = json.loads((folder / "kustomization.yaml").read_text())
    overlay = os.path.relpath((folder / made["resources"][0]).resolve(), "{k8s}")
    line = " ".join([verb, overlay, "in", made["namespace"], *rest[2:]])
    print("configmap/milcore-profile unchanged")
else:
    line = " ".join([verb, *rest])
    config = json.loads(pathlib.Path(os.environ["KUBECONFIG"]).read_text())
    path = "/api/v1/namespaces/%s/pods/%s/exec" % (rest[1], rest[2])
    urllib.request.urlopen(urllib.request.Request(config["clusters"][0]["cluster"]["server"] + path, method="POST"))
with open("{calls}", "a") as file:
    file.write(line + "\\n")
"""


class Surroundings:
    """A stage at an address, and the lines of its kubectl."""

    def __init__(self, stage: Stage, address: str, folder: Path) -> None:
        self.stage, self.address, self._calls = stage, address, folder / "kubectl.log"

    def cluster(self) -> Cluster:
        """The namespace, without a pause between looks."""
        api = client.ApiClient(client.Configuration(host=self.address))
        return Cluster(api, NAMESPACE, read_settings("milcore:1", "s3://bucket/conformance", KEYS), lambda _: None)

    @property
    def kubectl_calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


MakeSurroundings = Callable[..., Surroundings]


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeSurroundings]:
    """Makes a stage; KUBECONFIG and PATH lead to it."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    k8s = Path(__file__).resolve().parents[2] / "k8s"
    program.write_text(KUBECTL.format(python=sys.executable, k8s=k8s, calls=tmp_path / "kubectl.log"))
    program.chmod(0o755)
    with ExitStack() as stack:

        def make(**plot: object) -> Surroundings:
            stage = Stage(**plot)  # type: ignore[arg-type]
            address = stack.enter_context(serving_here(stage, tmp_path, monkeypatch))
            monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
            monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
            return Surroundings(stage, address, tmp_path)

        yield make
