"""Room for workers in the connected cluster: counted, requested and waited for.

An autoscaling cluster has no nodes before work requests them, so every step that computes on one waits here first: for
as many workers as it cannot begin without, for as long as ``set_scale_up_timeout`` says. Training needs all of its
workers, the other steps one. These request all of theirs at once, and a worker whose node comes later joins then: how
long a node of GPUs takes to come is nobody's guess, and no step computes with fewer workers because it came late.
"""

import math
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from milcore.config import LaunchConfig
from milcore.errors import ClusterError
from milcore.runtime.progress import log_line

SCALE_UP_TIMEOUT_S = 600.0
SECONDS_BETWEEN_LINES = 60.0

_timeout_s = ContextVar("timeout_s", default=SCALE_UP_TIMEOUT_S)


def set_scale_up_timeout(seconds: float) -> None:
    """Set the seconds after which this process no longer waits for room."""
    _timeout_s.set(seconds)


def task_resources(launch: LaunchConfig) -> dict[str, float]:
    """Resources that a task of one worker reserves."""
    return {"CPU": 1.0} | ({"GPU": 1.0} if launch.use_gpu else {})


def worker_capacity(resources: Mapping[str, float]) -> int:
    """Number of workers that the connected cluster holds when idle.

    Args:
        resources: amounts that each worker reserves, by Ray's names (CPU, GPU).
    """
    return room_of_nodes(node_resources(), resources)


def room_of_nodes(nodes: Iterable[Mapping[str, float]], resources: Mapping[str, float]) -> int:
    """Number of workers that nodes hold when idle, by the resources of both."""
    reserved = {name: amount for name, amount in resources.items() if amount > 0.0}
    return sum(
        min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in reserved.items()) for node in nodes
    )


def workers_per_node(launch: LaunchConfig) -> int:
    """Most workers of one CPU, or GPU, that a node of the cluster holds."""
    name = "GPU" if launch.use_gpu else "CPU"
    room = max((int(node.get(name, 0)) for node in node_resources()), default=1)
    return max(1, min(launch.workers or room, room))


def node_resources() -> list[dict[str, float]]:
    """Resources of each node of the connected cluster, by Ray's names."""
    all_nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray has no types for it
    return [node["Resources"] for node in all_nodes if node["Alive"]]


def wait_for_workers(launch: LaunchConfig, workers: int, resources: Mapping[str, float]) -> None:
    """Wait until the connected cluster, when idle, can hold the workers.

    CPUs and GPUs that are in use are waited for by Ray. Meanwhile a placement group requests the workers' resources,
    which makes an autoscaling cluster add nodes. A cluster of this process does not grow: nothing is waited for.

    Args:
        launch: address of the cluster.
        workers: that the step cannot begin without.
        resources: that each of them reserves.

    Raises:
        ClusterError: the cluster is too small after the time set by ``set_scale_up_timeout``.
    """
    room = worker_capacity(resources)
    if room >= workers:
        return
    timeout_s = 0.0 if launch.ray_address == "local" else _timeout_s.get()
    request = placement_group([dict(resources)] * workers)
    try:
        room = _Wait(workers, resources, timeout_s).run(room)
    finally:
        remove_placement_group(request)
    if room < workers:
        raise ClusterError(_shortage(workers, room, resources, timeout_s))


class _Wait:
    """One wait for room, which logs each minute what it waits for.

    Args:
        workers: that are requested.
        resources: that each of them reserves.
        timeout_s: after which the wait ends.
    """

    def __init__(self, workers: int, resources: Mapping[str, float], timeout_s: float) -> None:
        self._workers, self._resources, self._timeout_s = workers, resources, timeout_s
        self._start = self._line_due = time.monotonic()

    def run(self, room: int) -> int:
        """Number of workers that the cluster holds at the end of the wait."""
        while room < self._workers and time.monotonic() - self._start < self._timeout_s:
            self._show(room)
            time.sleep(1.0)
            room = worker_capacity(self._resources)
        return room

    def _show(self, room: int) -> None:
        """Log what is waited for, where a minute has passed since the last line."""
        now = time.monotonic()
        if now < self._line_due:
            return
        self._line_due = now + SECONDS_BETWEEN_LINES
        log_line(
            f"waiting for room for {self._workers} workers ({_each(self._resources)} each): the cluster has room for "
            f"{room}; {now - self._start:.0f} s of at most {self._timeout_s:.0f} s"
        )


def _each(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount)


def _shortage(workers: int, room: int, resources: Mapping[str, float], timeout_s: float) -> str:
    wait = f", and the cluster did not grow in {timeout_s:g} s" if timeout_s else ""
    without_gpu = ", leave out --use-gpu" if resources.get("GPU") else ""
    return (
        f"workers: expected at most {room} of {_each(resources)} each, got {workers}{wait}; allowed: as many as the "
        f"cluster has room for; take fewer workers (--workers){without_gpu} or add nodes"
    )
