"""Stand-ins for the Kubeflow Pipelines API: one that answers, and one that runs what it is sent."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest


class StandIn(BaseHTTPRequestHandler):
    """As much of the Kubeflow Pipelines API as submitting and waiting asks for."""

    state: ClassVar[str] = "SUCCEEDED"
    runs: ClassVar[list[dict[str, Any]]] = []
    tokens: ClassVar[set[str | None]] = set()
    paths: ClassVar[list[str]] = []
    # what looks at a run are answered with, one after the other, before they are answered rightly; 0 cuts the line
    faults: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        self.paths.append(self.path)
        if "/runs/" in self.path and self.faults:
            self._fail(self.faults.pop(0))
            return
        path = self.path.partition("?")[0].removeprefix("/apis/v2beta1")
        experiment = {"experiment_id": "e1", "display_name": "attention-mil", "namespace": ""}
        answers = {
            "/healthz": {"multi_user": False},
            "/experiments": {"experiments": [experiment], "total_size": 1},
            "/experiments/e1": experiment,
            "/runs/r1": {"run_id": "r1", "state": self.state, "display_name": "run"},
        }
        self._answer(answers[path])

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.partition("?")[0].endswith("/runs"):
            self.runs.append(sent)
            self._answer({"run_id": "r1", "experiment_id": "e1", "display_name": sent["display_name"]})
        else:
            self._answer({"experiment_id": "e1", "display_name": sent["display_name"]})

    def _fail(self, code: int) -> None:
        self.close_connection = True
        if code:
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer(self, value: dict[str, Any]) -> None:
        self.tokens.add(self.headers.get("Authorization"))
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""


RUN_WHAT_WAS_SENT = """
import json, sys, yaml
from kfp import components, local
sent = json.load(sys.stdin)
spec = sent["pipeline_spec"].get("pipeline_spec", sent["pipeline_spec"])
# what fails here fails as before, and the runner would wait minutes for it
dags = [spec["root"]["dag"], *(its["dag"] for its in spec["components"].values() if "dag" in its)]
for dag in dags:
    for task in dag["tasks"].values():
        task.pop("retryPolicy", None)
for its in spec["deploymentSpec"]["executors"].values():
    its["container"]["env"] = [each for each in its["container"]["env"] if each["name"] != "MILCORE_RETRIES"]
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
run = components.load_component_from_text(yaml.safe_dump(spec))
run(**sent["runtime_config"]["parameters"])
"""


class Executing(StandIn):
    """Runs the pipeline it is sent by kfp's local runner, in a process of its own."""

    pipeline_root: ClassVar[str] = ""
    output: ClassVar[str] = ""

    def do_POST(self) -> None:
        before = len(self.runs)
        if self.path.partition("?")[0].endswith("/runs"):
            type(self).state = "RUNNING"
        super().do_POST()
        if len(self.runs) > before:
            threading.Thread(target=self._execute, args=(json.dumps(self.runs[-1]),)).start()

    def _execute(self, sent: str) -> None:
        command = [sys.executable, "-c", RUN_WHAT_WAS_SENT, self.pipeline_root]
        surroundings = os.environ | {"PIPELINE_RUN_ID": "r1"}
        ended = subprocess.run(command, input=sent, text=True, capture_output=True, check=False, env=surroundings)
        type(self).output = ended.stdout
        type(self).state = "FAILED" if ended.returncode else "SUCCEEDED"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from _serve(StandIn, monkeypatch)


@pytest.fixture
def executing_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setattr(Executing, "pipeline_root", str(tmp_path / "root"))
    monkeypatch.setattr(Executing, "state", "PENDING")
    yield from _serve(Executing, monkeypatch)


def _serve(kind: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(StandIn, "runs", [])
    monkeypatch.setattr(StandIn, "tokens", set())
    monkeypatch.setattr(StandIn, "paths", [])
    monkeypatch.setattr(StandIn, "faults", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
