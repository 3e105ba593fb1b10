"""One local Ray for all tests of the room, and a cluster of its own started from the command line."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from milcore.cluster.workers.connect import connected
from milcore.config import LaunchConfig
from tests.ray_node import Head, head_node


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
    """A Ray cluster of this process; it begins with the environment that holds the keys of the S3 server.

    Drivers of other processes join it, too: to them it is another cluster, with roots that its administrator set.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MILCORE_ALLOWED_ROOTS", tempfile.gettempdir())
        with connected(LaunchConfig()):
            yield


@pytest.fixture(scope="session")
def standing_ray(s3: str) -> Iterator[Head]:
    """A cluster that somebody else started, with its own keys of the tests' S3 server."""
    with head_node(cpus=2) as head:
        yield head
