"""The version of Kubeflow Pipelines is read from its health answer, of the API or of the UI before it."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from milcore.cluster.doctor.kubeflow import check_host, kubeflow_findings, version_finding
from milcore.errors import InputError

# backend/src/apiserver/main.go and frontend/server/handlers/healthz.ts of kubeflow/pipelines
API = {"commit_sha": "abc", "tag_name": "2.17.0", "multi_user": False, "pipeline_store": "database"}
UI = {"apiServerReady": True, "apiServerTagName": "2.17.0", "frontendTagName": "2.17.0", "multi_user": False}


@pytest.fixture
def answers() -> Iterator[tuple[str, list[Any]]]:
    """Address of a server, and its next answer: a code and a body."""
    planned: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = planned if self.path == "/apis/v2beta1/healthz" else (404, b"")
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Keep quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", planned
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("values", [API, UI], ids=["API", "UI"])
def test_the_version_is_read_over_http(answers: tuple[str, list[Any]], values: dict[str, object]) -> None:
    host, planned = answers
    planned[:] = [200, json.dumps(values).encode()]
    (finding,) = kubeflow_findings(check_host(f"{host}/"))
    assert finding[:3] == ("Kubeflow Pipelines", "ok", "version 2.17.0")


@pytest.mark.parametrize(
    ("code", "body", "state", "text"),
    [
        (401, b"", "warning", "asks for a login"),
        (503, b"", "failure", "answers 503"),
        (200, b"<html>", "failure", "no API of it answers"),
        (200, b"[]", "warning", "of version unknown"),
    ],
)
def test_another_answer_is_told(answers: tuple[str, list[Any]], code: int, body: bytes, state: str, text: str) -> None:
    host, planned = answers
    planned[:] = [code, body]
    (finding,) = kubeflow_findings(host)
    assert finding.state == state
    assert text in finding.text
    assert finding.remedy


def test_a_host_that_does_not_answer_is_a_failure() -> None:
    (finding,) = kubeflow_findings("http://127.0.0.1:1")
    assert (finding.state, "port-forward" in finding.remedy) == ("failure", True)


@pytest.mark.parametrize(
    ("version", "state"), [("2.14.3", "failure"), ("2.15.0", "ok"), ("v2.17.1", "ok"), ("2.18.0", "warning")]
)
def test_versions_are_judged(version: str, state: str) -> None:
    assert version_finding({"tag_name": version}).state == state


def test_a_server_of_another_protocol_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"SSH-2.0-x\r\n"))
        thread.start()
        (finding,) = kubeflow_findings(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert finding.state == "failure"


@pytest.mark.parametrize("host", ["kubeflow", "http://kubeflow:port", "http://kubeflow/a b"])
def test_what_is_no_address_is_bad_input(host: str) -> None:
    with pytest.raises(InputError, match=r"--kfp: expected an address, got 'http:|got 'kubeflow'; allowed: http"):
        check_host(host)
