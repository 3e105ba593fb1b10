"""The service on Ray Serve: over HTTP, several models and replicas, and an end that leaves no process."""

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from milcore.cluster.workers.connect import connected
from milcore.config import LaunchConfig, ServeConfig
from milcore.serving.authorisation import TOKEN, token_digest
from milcore.serving.served_runs import served_models
from tests.cli.test_signals import MILCORE, Command
from tests.conftest import free_ports
from tests.serving.bodies import HEADER_LENGTH, binary_outputs, binary_request
from tests.serving.conftest import SLIDES, columns_of, features_of

SECRET = "0123456789abcdef" * 2
AUTHORISED = {"Authorization": f"Bearer {SECRET}"}
INFER = "/v2/models/run/infer"
PLACES = 5
pytestmark = [
    pytest.mark.cluster,
    # Ray's own modules use what they deprecate, and leave sockets to the garbage collector
    *(
        pytest.mark.filterwarnings(f"ignore::{name}")
        for name in ("DeprecationWarning", "FutureWarning", "ResourceWarning")
    ),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def exchange(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or AUTHORISED)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def port(cohort: Path) -> Iterator[int]:
    """Port of a service of two models; a bag passes alone."""
    from milcore.serving.deployments import running  # noqa: PLC0415 - Ray Serve warns where it is imported

    (port,) = free_ports(1)
    config = ServeConfig(port=port, instances_per_batch=1, max_ongoing_requests=2, max_queued_requests=PLACES - 2)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(TOKEN, SECRET)
        models = served_models([str(cohort / "run"), f"second={cohort / 'other'}"])
        with connected(LaunchConfig()), running(models, config, token_digest(config)):
            yield port


def test_answers_are_predict_s_to_the_bit_however_many_ask(
    port: int, cohort: Path, rows: dict[str, dict[str, Any]]
) -> None:
    def ask(k: int) -> tuple[str, dict[str, list[Any]]]:
        slide_id = f"s{k % SLIDES:02d}"
        body, headers = binary_request(features=features_of(cohort, slide_id))
        status, answered, data = exchange(port, "POST", INFER, body, headers | AUTHORISED)
        assert status == 200, data
        return slide_id, binary_outputs(data, answered[HEADER_LENGTH.lower()])

    with ThreadPoolExecutor(PLACES) as pool:
        for slide_id, outputs in pool.map(ask, range(4 * SLIDES)):
            known = {name: [value] for name, value in columns_of(rows[slide_id]).items() if value is not None}
            assert {name: outputs[name] for name in known} == known


def test_health_metadata_and_metrics(port: int) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert exchange(port, "GET", path, headers={"Accept": "*/*"})[0] == 200
    assert exchange(port, "GET", "/v2/models/second/ready")[0] == 200
    assert json.loads(exchange(port, "GET", "/v2/models/second")[2])["name"] == "second"
    status, headers, text = exchange(port, "GET", "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b'milcore_queue_length{model="run"} 0.0' in text


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        (INFER, b"{", AUTHORISED, 400),
        (INFER, b"{}", {"Authorization": "Bearer none"}, 401),
        ("/v2/models/none/infer", b"{}", AUTHORISED, 404),
    ],
)
def test_errors_pass_the_proxy_as_one_line(
    port: int, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer, _, text = exchange(port, "POST", path, body, headers)
    assert answer == status
    assert list(json.loads(text)) == ["error"]


def head_of(length: int) -> bytes:
    """Head of a request whose body is still to come."""
    headers = {"Host": "localhost", "Content-Length": length, **AUTHORISED}
    lines = [f"POST {INFER} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_full_queue_is_429_and_those_in_it_are_answered(port: int) -> None:
    body = json.dumps(
        {"inputs": [{"name": "features", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    ).encode()
    admitted = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(PLACES)]
    for connection in admitted:
        connection.sendall(head_of(len(body)))
    lengths = f'milcore_queue_length{{model="run"}} {PLACES}.0'
    while lengths.encode() not in exchange(port, "GET", "/metrics")[2]:
        threading.Event().wait(0.02)
    status, headers, text = exchange(port, "POST", INFER, body)
    assert (status, headers["retry-after"]) == (429, "1")
    assert json.loads(text)["error"].startswith("model run: expected fewer than 5 requests in work and waiting")
    assert exchange(port, "GET", "/v2/health/ready", headers={"Accept": "*/*"})[0] == 200
    for connection in admitted:
        connection.sendall(body)
    for connection in admitted:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["model_name"]) == (200, "run")
        connection.close()


@pytest.mark.slow
def test_sigterm_ends_the_command_after_the_answers_and_no_process_is_left(cohort: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = Command(
        MILCORE, "serve", str(cohort / "run"), "--port", str(port), "--replicas", "2", "--json", folder=tmp_path
    )
    command.wait_until(lambda: "serving run at http://127.0.0.1:" in command.log.read_text())
    body = json.dumps({"features": [[0.1, 0.2, 0.3]]}).encode()
    assert exchange(port, "POST", "/models/run/predict", body)[0] == 200
    command.send(signal.SIGTERM)
    assert command.process.wait(60) == 0, command.log.read_text()[-3000:]
    lines = command.log.read_text().splitlines()
    assert json.loads(lines[-1]) == {"models": ["run"]}
    assert not any("Traceback" in line for line in lines)
    command.check_none_is_left()


def ended(*words: str, **changes: str) -> tuple[int, str]:
    """Code and standard error of a command without the service's token."""
    environment = {name: value for name, value in os.environ.items() if name != TOKEN} | changes
    done = subprocess.run(
        [MILCORE, "serve", *words], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_what_keeps_it_from_starting_is_one_line(cohort: Path, tmp_path: Path) -> None:
    run = str(cohort / "run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, line = ended(run, "--port", str(taken.getsockname()[1]))
    assert (code, line.count("\n")) == (2, 1)
    assert "port: expected an address to listen at, got 127.0.0.1:" in line
    code, line = ended(run, "--host", "0.0.0.0")  # noqa: S104 - it is refused
    assert (code, line.count("\n")) == (2, 1)
    assert "host: expected a token beside an address that other machines reach" in line


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\")\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    code, line = ended("run", PYTHONPATH=path)
    assert (code, line.count("\n")) == (2, 1)
    assert "serve: needs Ray Serve and FastAPI (No module named 'fastapi'); pip install 'milcore[serve]'" in line
