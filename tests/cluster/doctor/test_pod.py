"""The program of the doctor's pods, as a process with the environment that a pod has."""

import json
import os
import subprocess
import sys

import pytest

from milcore.cluster.doctor import pod
from tests.conftest import free_ports


def first_lines(arguments: list[str], count: int, **environment: str) -> list[dict[str, object]]:
    """The first lines of a pod that listens until it is ended."""
    program = f"from milcore.cluster.doctor import pod; pod.PORT = {free_ports(1)[0]}; pod.main({arguments!r})"
    variables = {**os.environ, **environment}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=variables, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(count)]
        process.kill()
    return lines


def test_a_pod_checks_a_store_then_listens(s3: str) -> None:
    lines = first_lines(["--listen", f"{s3}/doctor"], 8)
    assert [line["check"] for line in lines[:3]] == ["reach", "content", "write"]
    assert {line["state"] for line in lines[:5]} == {"ok"}
    assert "listening" in lines[-1]


@pytest.mark.parametrize(
    ("environment", "state", "text"),
    [
        ({}, "ok", "knows the keys"),
        ({"AWS_SECRET_ACCESS_KEY": "other"}, "failure", "secret does not fit"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "failure", "nothing answers"),
    ],
)
def test_a_pod_without_a_store_checks_endpoint_and_keys(
    s3: str, environment: dict[str, str], state: str, text: str
) -> None:
    reach, listening = first_lines(["--listen"], 2, **environment)
    assert reach["state"] == state
    assert text in str(reach["text"])
    assert "listening" in listening


def test_a_pod_tells_whether_a_port_is_open_and_any_other(s3: str) -> None:
    program = (
        f"from milcore.cluster.doctor import pod; pod.PORT = {free_ports(1)[0]}; pod.main(['--reach', '127.0.0.1'])"
    )
    store, nothing = os.environ["AWS_ENDPOINT_URL"], f"http://127.0.0.1:{free_ports(1)[0]}"
    for endpoint, control in ((store, True), (nothing, False)):
        surroundings = os.environ | {"AWS_ENDPOINT_URL": endpoint}
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=surroundings
        )
        assert json.loads(ended.stdout) == {"reached": False, "control": control}


def test_an_open_port_is_reached(s3: str) -> None:
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    assert pod.reaches("127.0.0.1", port)
