"""Where Ray is not, or does not let us in, one line says so at once."""

import pytest

from milcore.cluster.workers.connect import connected
from milcore.config import LaunchConfig
from milcore.errors import ClusterError, InputError
from tests.conftest import free_ports


@pytest.fixture(autouse=True)
def _not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def test_nobody_at_the_address() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with (
        pytest.raises(ClusterError, match=f"expected a Ray cluster that answers, got none at '{address}'"),
        connected(LaunchConfig(ray_address=address)),
    ):
        pass


@pytest.mark.parametrize("address", ["somewhere", "127.0.0.1:dashboard", "ray"])
def test_something_that_is_no_address(address: str) -> None:
    with (
        pytest.raises(ClusterError, match="allowed: local, host:port of its GCS"),
        connected(LaunchConfig(ray_address=address)),
    ):
        pass


def test_a_token_without_the_mode_that_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with (
        pytest.raises(InputError, match="set RAY_AUTH_MODE=token"),
        connected(LaunchConfig(ray_address="127.0.0.1:6379")),
    ):
        pass
