"""A container engine, the image that `make image` built, and an object store that containers reach.

Run by `make test-containers`, which sees to the first two.
"""

import contextlib
import importlib.util
import os
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import s3fs

import milcore
from tests.conftest import free_ports

ROOT = Path(__file__).resolve().parents[2]
IMAGE = f"localhost/milcore:{milcore.__version__}"
CONFINED = ["--read-only", "--tmpfs=/tmp:rw,size=2g,mode=1777", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
WEED = Path(sys.executable).with_name("weed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.container)
            # kfp, docker and Ray use what they deprecate, and leave sockets to the garbage collector
            for warning in ("DeprecationWarning", "FutureWarning", "ResourceWarning", "RuntimeWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{warning}"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


def load_build() -> Any:
    """The script that finds the engine and builds the image."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "k8s" / "image" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Engine:
    """Podman or docker, and the names of what these tests started."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name = name
        self.environment = environment
        self.image = IMAGE if name == "podman" else IMAGE.removeprefix("localhost/")
        self.network = f"mil-{uuid.uuid4().hex[:8]}"
        self.started: list[str] = []

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the engine."""
        command = [self.name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=check, env=self.environment)

    def run(self, *command: str, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command in the image as a pod would run it, to its end."""
        return self("run", "--rm", *CONFINED, *flags, self.image, *command, check=False)

    def start(self, name: str, *command: str, flags: Sequence[str] = ()) -> str:
        """Start a container on the tests' network, reached by its name; its full name."""
        full = f"{self.network}-{name}"
        self("run", "--detach", "--name", full, "--network", self.network, "--network-alias", name, *flags,
             self.image, *command)  # fmt: skip
        self.started.append(full)
        return full


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    build = load_build()
    try:
        name = build.find_engine(install=False)
    except build.BuildError as error:
        pytest.skip(str(error))
    its = Engine(name, build.environment(name))
    if its("image", "inspect", its.image, check=False).returncode:
        pytest.skip(f"no image {its.image}; run `make image`")
    its("network", "create", its.network)
    try:
        yield its
    finally:
        for container in its.started:
            its("rm", "--force", "--time=0" if name == "podman" else "--volumes", container, check=False)
        its("network", "rm", its.network, check=False)


@pytest.fixture(scope="session")
def store_keys(engine: Engine) -> Iterator[dict[str, str]]:
    """The environment in which containers reach an object store of their own; this process's leads there too."""
    (port,) = free_ports(1)
    keys = {
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(8),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    flags = [f"--volume={WEED}:/weed:ro", f"--publish=127.0.0.1:{port}:8333", "--tmpfs=/data:rw,mode=1777",
             *(f"--env={name}={value}" for name, value in keys.items())]  # fmt: skip
    command = ["/weed", "mini", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", "-s3.port=8333", "-bucket=milcore",
               "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
               "-master.telemetry=false"]  # fmt: skip
    name = engine.start("s3", *command, flags=flags)
    with pytest.MonkeyPatch.context() as environment:
        for key, value in keys.items():
            environment.setenv(key, value)
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        wait_for_bucket(engine, name)
        yield {**keys, "AWS_ENDPOINT_URL": "http://s3:8333"}


def wait_for_bucket(engine: Engine, name: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError):
            s3fs.S3FileSystem(skip_instance_cache=True).pipe_file("milcore/.ready", b"")
            return
        time.sleep(0.2)
    pytest.fail(f"the object store did not start: {engine('logs', name, check=False).stderr[-2000:]}")


def env_flags(values: dict[str, str]) -> list[str]:
    return [f"--env={name}={value}" for name, value in values.items()]


def docker_host(engine: Engine, folder: Path) -> tuple[str, subprocess.Popen[bytes] | None]:
    """Where the engine answers to docker's client, and the service that was started for it."""
    if engine.name == "docker":
        return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"), None
    socket = folder / "podman.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time=0", f"unix://{socket}"], env=engine.environment)
    while not socket.exists():
        assert service.poll() is None
        time.sleep(0.1)
    return f"unix://{socket}", service
