"""Connection to Ray: a local cluster of this process, or a standing one.

Ray reads ``RAY_AUTH_MODE`` when it is imported, so a cluster with token authentication is joined only by a process that
was started with it.
"""

import contextlib
import functools
import io
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping

import ray

from milcore.config import LaunchConfig
from milcore.errors import ClusterError, InputError
from milcore.runtime.allow_list import REMOTE
from milcore.runtime.command import delayed_signals
from milcore.runtime.limits import cpus, memory_bytes
from milcore.runtime.progress import log_line
from milcore.runtime.thread_limit import WAITING_THREADS, default_environment

LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Train collects a report once per interval (s): its default of 2 s would bound the speed of short epochs
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # no preemption notices: this machine is no cloud's spot instance
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    **WAITING_THREADS,
}
# prefixes of the storage's address and of Ray's settings; credentials and tokens are the cluster's own, since Ray shows
# what is forwarded
FORWARDED_PREFIXES = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION", "RAY_TRAIN_", "TUNE_", "OMP_")
CONNECT_TIMEOUT_S = 10.0
# the least that Ray takes, and more than what workers hand over ever fills
LEAST_STORE_BYTES, MOST_STORE_BYTES = 80_000_000, 1_000_000_000
TOKEN_VARIABLES = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


@contextlib.contextmanager
def connected(launch: LaunchConfig) -> Iterator[None]:
    """Connect to Ray at ``launch.ray_address`` for the length of the context.

    A connection that is open already is used, and left open.

    Args:
        launch: Ray's address.

    Raises:
        InputError: the environment has a token and no RAY_AUTH_MODE.
        ClusterError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    is_local = launch.ray_address == "local"
    with default_environment({**LOCAL_ENVIRONMENT, **_local_token()} if is_local else {}):
        try:
            with delayed_signals(), _own_sigterm():
                _start() if is_local else _join(launch.ray_address)
            yield
        except (SystemExit, KeyboardInterrupt):
            # Ray's actors would print tracebacks while their cluster ends
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                ray.shutdown()
            raise
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep Ray from handling SIGTERM.

    It would exit with another code, and wait for drains.
    """
    rays = ray._private.utils.set_sigterm_handler  # noqa: SLF001 - it has no setting for this
    ray._private.utils.set_sigterm_handler = lambda _: None  # noqa: SLF001
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = rays  # noqa: SLF001


def forwarded_variables() -> dict[str, str]:
    """Environment variables for workers on other machines.

    Those of this process that they need too, and that they are remote.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED_PREFIXES)}
    return {**WAITING_THREADS, **own, REMOTE: "1"}


def _start() -> None:
    log_line(f"Ray CPUs: {cpus()}; object store: {object_store_bytes() / 1e6:.0f} MB")
    ray.init(
        address="local",
        num_cpus=cpus(),
        object_store_memory=object_store_bytes(),
        include_dashboard=False,
        logging_level=logging.ERROR,
    )


def object_store_bytes() -> int:
    """Size of a local object store: a tenth of the memory, within bounds."""
    return max(LEAST_STORE_BYTES, min(MOST_STORE_BYTES, memory_bytes() // 10))


def _join(address: str) -> None:
    if "RAY_AUTH_MODE" not in os.environ and TOKEN_VARIABLES & os.environ.keys():
        raise InputError(
            "RAY_AUTH_MODE: expected a mode beside the environment's Ray token, got none; allowed: token, disabled; "
            "set RAY_AUTH_MODE=token and start again"
        )
    try:
        if address != "auto":  # Ray itself would retry for many minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        # inside a job ("auto") the workers get the job's environment
        runtime_env = None if address == "auto" else {"env_vars": forwarded_variables()}
        ray.init(address=address, logging_level=logging.ERROR, runtime_env=runtime_env)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ClusterError(
            f"ray_address: expected a Ray cluster that answers, got none at {address!r} ({reason}); allowed: local, "
            "host:port of its GCS (6379), or http(s)://host:port of its dashboard (8265)"
        ) from error


def _local_token() -> Mapping[str, str]:
    # a local cluster uses a token unless RAY_AUTH_MODE is disabled; Ray would write it into the home folder, which a
    # pod may lack
    if os.environ.get("RAY_AUTH_MODE") == "disabled" or TOKEN_VARIABLES & os.environ.keys():
        return {}
    return {"RAY_AUTH_TOKEN": _token()}


@functools.cache
def _token() -> str:
    # one per process, since Ray reads it once
    return secrets.token_hex(16)
