"""One local Ray for all tests of the room, and a cluster of its own started from the command line."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from milcore.cluster.connect import connected
from milcore.config import LaunchConfig
from tests.conftest import free_ports


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            # Ray's own modules use what they deprecate, and leave sockets to the garbage collector
            for warning in ("DeprecationWarning", "FutureWarning", "ResourceWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{warning}"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(scope="session")
def local_ray(s3: str) -> Iterator[None]:
    """A Ray cluster of this process; it begins with the environment that holds the keys of the S3 server."""
    with connected(LaunchConfig(), dashboard=True):
        yield


class StandingCluster(NamedTuple):
    """Addresses of a cluster that somebody else started."""

    gcs: str
    dashboard: str


@pytest.fixture(scope="session")
def standing_ray(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingCluster]:
    """`ray start --head` with two CPUs, on loopback, and with its own keys of the tests' S3 server."""
    gcs, dashboard, client = free_ports(3)
    programs = Path(sys.executable).parent
    command = [str(programs / "ray"), "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
               f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
               f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0", "--metrics-export-port=0",
               "--disable-usage-stats"]  # fmt: skip
    surroundings = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("wb") as sink:
        head = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, env=surroundings, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{dashboard}/api/version", head, log)
        yield StandingCluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}")
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # asked to stop, it would wait 30 s for what its jobs left behind
        head.wait()


def _wait_for(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if head.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - loopback
            return
        time.sleep(0.1)
    pytest.fail(f"Ray did not start: {log.read_text(errors='replace')[-2000:]}")
