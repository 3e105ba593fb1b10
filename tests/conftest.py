"""Fixtures that several rooms' tests share."""

import contextlib
import random
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch

from tests import type_checks
from tests.seaweedfs import s3_environment, seaweedfs

# other tests run on the same cores, so that how long an example takes says nothing
hypothesis.settings.register_profile("milcore", deadline=None)
hypothesis.settings.load_profile("milcore")


@pytest.hookimpl(trylast=True)  # folders mark their tests first
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: files are dealt whole, and a long one at the end would leave a core idle."""
    slow = {item.path for item in items if any(map(item.get_closest_marker, ("slow", "cluster")))}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup() -> None:
    type_checks.begin_test()


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """Calls as users make them: annotations are checked in tests alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real slides and sets kept beside the project; tests that use them skip where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data beside the project ({folder.name} folder absent)")
    return folder


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Files as the field makes them, kept beside the project; tests that use them skip where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"no shared cases beside the project ({folder.name} folder absent)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _quiet_surroundings() -> Iterator[None]:
    """Ray without tokens or usage reports, quick reports from its workers; one thread each; no cluster but ours."""
    torch.set_num_threads(1)  # small models: with the other tests on the same cores, threads only wait for each other
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        environment.setenv("RAY_worker_niceness", "0")  # workers would stand back behind the other tests
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # a program that starts would compile milcore anew
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield


def free_ports(count: int) -> list[int]:
    """Loopback ports free now, each with its gRPC twin 10,000 above; below the ephemeral range and outside Ray's."""
    return [port for port in random.sample(range(20000, 22700), 200) if _is_free(port) and _is_free(port + 10000)][
        :count
    ]


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of a bucket on a SeaweedFS server of this test session; the environment holds its endpoint and keys."""
    ports = free_ports(5)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3_environment(ports[0]).items():
            environment.setenv(name, value)
        with seaweedfs(tmp_path_factory.mktemp("seaweedfs"), ports) as uri:
            yield uri


@pytest.fixture(params=["local", "s3"])
def folder_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of a fresh folder, once on the local disk and once on S3."""
    if request.param == "local":
        return str(tmp_path / "folder")
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
