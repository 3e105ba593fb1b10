"""Ray for the length of a context: a cluster of this process, or one that stands already.

The surprise: Ray reads ``RAY_AUTH_MODE`` when it is imported, so a cluster with token authentication is joined only by
a process that was started with it.
"""

import contextlib
import functools
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from milcore.config import LaunchConfig
from milcore.errors import ClusterError, InputError
from milcore.runtime.progress import log_line

LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Train hands a report on once per interval: its default of 2 s would pace short epochs
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # this machine is not taken away with a warning, as a cloud's may be
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# where the store is, and how Ray works; credentials and tokens are the cluster's own, since Ray shows what is handed on
HANDED_ON = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION", "RAY_TRAIN_", "TUNE_", "OMP_NUM_THREADS")
SECONDS_TO_ANSWER = 10.0
SECONDS_TO_GROW = 600.0
TOKENS = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


@contextlib.contextmanager
def connected(launch: LaunchConfig, *, dashboard: bool = False) -> Iterator[None]:
    """Ray at ``launch.ray_address``; a connection that is there already is used and left open.

    Args:
        launch: where.
        dashboard: give a cluster of this process a dashboard (loopback), for what asks Ray's State API.

    Raises:
        InputError: the environment holds a token and not the mode that uses it.
        ClusterError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    local = launch.ray_address == "local"
    with environment({**LOCAL_ENVIRONMENT, **_own_token()} if local else {}):
        _start(dashboard=dashboard) if local else _join(launch.ray_address)
        try:
            yield
        finally:
            ray.shutdown()


def cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def room(resources: Mapping[str, float]) -> int:
    """How many workers that reserve so much each the connected cluster could hold, were it idle."""
    wanted = {name: amount for name, amount in resources.items() if amount > 0.0}
    every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray ships it so
    nodes = [node["Resources"] for node in every if node["Alive"]]
    return sum(
        min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items()) for node in nodes
    )


def wait_for_room(workers: int, resources: Mapping[str, float], seconds: float = SECONDS_TO_GROW) -> None:
    """Return when the connected cluster could hold the workers; busy ones are Ray's to wait for.

    Meanwhile their place is asked for, which is what makes an autoscaling cluster grow.

    Raises:
        ClusterError: it cannot after so many seconds.
    """
    if room(resources) >= workers:
        return
    each = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
    log_line(f"waiting for {workers} workers' place ({each} each); the cluster has place for {room(resources)}")
    asked = placement_group([dict(resources)] * workers)
    try:
        for _ in range(math.ceil(seconds)):
            time.sleep(1.0)
            if room(resources) >= workers:
                return
    finally:
        remove_placement_group(asked)
    raise ClusterError(
        f"{workers} workers of {each} each were wanted; the cluster has place for {room(resources)}, and did not grow "
        f"in {seconds:g} s; take fewer workers (--workers) or add nodes"
    )


def handed_on() -> dict[str, str]:
    """The variables of this environment that workers elsewhere need too."""
    return {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}


def _start(*, dashboard: bool) -> None:
    ray.init(address="local", num_cpus=cpus(), include_dashboard=dashboard, logging_level=logging.ERROR)


def _join(address: str) -> None:
    if "RAY_AUTH_MODE" not in os.environ and TOKENS & os.environ.keys():
        raise InputError(
            "the environment has a Ray token and no RAY_AUTH_MODE; set RAY_AUTH_MODE=token (or disabled), start again"
        )
    try:
        if address != "auto":  # Ray itself would try for many minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
        # under a job ("auto") the workers get the job's environment
        surroundings = None if address == "auto" else {"env_vars": handed_on()}
        ray.init(address=address, logging_level=logging.ERROR, runtime_env=surroundings)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ClusterError(
            f"no Ray cluster answers at {address!r} ({reason}); allowed: local, host:port of its GCS (6379), or "
            "http(s)://host:port of its dashboard (8265)"
        ) from error


def _own_token() -> Mapping[str, str]:
    # a local cluster uses a token where nobody said otherwise, and Ray would keep it in the home folder, which a pod
    # may lack
    if os.environ.get("RAY_AUTH_MODE") == "disabled" or TOKENS & os.environ.keys():
        return {}
    return {"RAY_AUTH_TOKEN": _token()}


@functools.cache
def _token() -> str:
    # one for the life of the process, since Ray reads it once
    return secrets.token_hex(16)


@contextlib.contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that stand unset, set for the length of the context."""
    missing = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
