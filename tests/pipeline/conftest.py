"""A stand-in for the Kubeflow Pipelines API."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest


class StandIn(BaseHTTPRequestHandler):
    """As much of the Kubeflow Pipelines API as submitting and waiting asks for."""

    state: ClassVar[str] = "SUCCEEDED"
    runs: ClassVar[list[dict[str, Any]]] = []
    tokens: ClassVar[set[str | None]] = set()

    def do_GET(self) -> None:
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


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(StandIn, "runs", [])
    monkeypatch.setattr(StandIn, "tokens", set())
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
