"""A node of a Ray cluster as an operator starts it: by the `ray start` command."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conftest import free_ports

QUIET = ("--dashboard-agent-listen-port=0", "--metrics-export-port=0", "--disable-usage-stats")
Node = subprocess.Popen[bytes]


class Head(NamedTuple):
    """Addresses of a cluster that somebody else started."""

    gcs: str
    dashboard: str


@contextlib.contextmanager
def head_node(cpus: int) -> Iterator[Head]:
    """A head on loopback, with its dashboard and a folder of its own.

    Ray notes a head's address in its folder, where others on the machine would find it long after it was killed. The
    folder's name is short because sockets lie in it.
    """
    gcs, dashboard, client = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        where = ["--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
        with _started(["--head", f"--num-cpus={cpus}", *ports, *where]):
            yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}")


def worker_node(address: str, gpus: int = 0) -> contextlib.AbstractContextManager[Node]:
    """A node of one CPU that joins the cluster of an address, with GPUs as far as Ray is told."""
    return _started([f"--address={address}", "--num-cpus=1", f"--num-gpus={gpus}"])


@contextlib.contextmanager
def _started(options: Sequence[str]) -> Iterator[Node]:
    programs = Path(sys.executable).parent
    command = [str(programs / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", *QUIET, *options]
    # as its administrator sets it; jobs and workers of others may read nothing else of this disk
    roots = {"MILCORE_ALLOWED_ROOTS": tempfile.gettempdir()}
    surroundings = os.environ | roots | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.NamedTemporaryFile(prefix="ray-start-") as log:
        node = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=surroundings, start_new_session=True)
        try:
            _wait_until_it_runs(node, Path(log.name))
            yield node
        finally:
            # asked to stop, a head would wait 30 s for what its jobs left behind
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()


def _wait_until_it_runs(node: Node, log: Path) -> None:
    for _ in range(1200):
        assert node.poll() is None, log.read_text()[-2000:]
        if "Ray runtime started" in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"Ray did not start: {log.read_text()[-2000:]}")
