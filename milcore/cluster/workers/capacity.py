"""Room for workers in the connected cluster: counted, requested and waited for.

An autoscaling cluster has no nodes before work requests them, so every step that computes on one waits here first.
"""

import math
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from milcore.config import LaunchConfig
from milcore.errors import ClusterError
from milcore.runtime.progress import log_line

SCALE_UP_TIMEOUT_S = 600.0
SECONDS_BETWEEN_LINES = 60.0
# after which a step that can do with fewer workers goes on with those whose nodes came
SECONDS_TO_SETTLE = 60.0

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
    reserved = {name: amount for name, amount in resources.items() if amount > 0.0}
    return sum(
        min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in reserved.items())
        for node in node_resources()
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


def wait_for_workers(
    launch: LaunchConfig, workers: int, resources: Mapping[str, float], settle_s: float | None = None
) -> int:
    """Wait until the connected cluster, when idle, can hold the workers.

    Returns how many of them it can.

    CPUs and GPUs that are in use are waited for by Ray. Meanwhile a placement group requests the workers' resources,
    which makes an autoscaling cluster add nodes. A cluster of this process does not grow: nothing is waited for.

    Args:
        launch: address of the cluster.
        workers: that are requested.
        resources: that each of them reserves.
        settle_s: fewer workers will do, at least one, once no node has come for so many seconds; None: all are needed.

    Raises:
        ClusterError: the cluster is too small after the time set by ``set_scale_up_timeout``.
    """
    is_local = launch.ray_address == "local"
    least = workers if settle_s is None else 1
    room = worker_capacity(resources)
    if room >= (least if is_local else workers):
        return min(room, workers)
    timeout_s = 0.0 if is_local else _timeout_s.get()
    request = placement_group([dict(resources)] * workers)
    try:
        room = _Wait(workers, resources, settle_s, timeout_s).run(room)
    finally:
        remove_placement_group(request)
    if room < least:
        raise ClusterError(_shortage(workers, room, resources, timeout_s))
    return min(room, workers)


class _Wait:
    """One wait for room, which logs each minute what it waits for.

    Args:
        workers: that are requested.
        resources: that each of them reserves.
        settle_s: as of ``wait_for_workers``.
        timeout_s: after which the wait ends.
    """

    def __init__(self, workers: int, resources: Mapping[str, float], settle_s: float | None, timeout_s: float) -> None:
        self._workers, self._resources = workers, resources
        self._settle_s, self._timeout_s = settle_s, timeout_s
        self._start = self._grown = time.monotonic()
        self._line_due = self._start

    def run(self, room: int) -> int:
        """Number of workers that the cluster holds at the end of the wait."""
        while not self._is_over(room):
            self._show(room)
            time.sleep(1.0)
            before, room = room, worker_capacity(self._resources)
            if room > before:
                self._grown = time.monotonic()
        return room

    def _is_over(self, room: int) -> bool:
        if room >= self._workers:
            return True
        now = time.monotonic()
        if room and self._settle_s is not None:
            return now - self._grown >= self._settle_s
        return now - self._start >= self._timeout_s

    def _show(self, room: int) -> None:
        """Log what is waited for, where a minute has passed since the last line."""
        now = time.monotonic()
        if now < self._line_due:
            return
        self._line_due = now + SECONDS_BETWEEN_LINES
        log_line(
            f"waiting for room for {self._workers} workers ({_each(self._resources)} each): the cluster has room for "
            f"{room}; {now - self._start:.0f} s, at most {self._timeout_s:.0f} s without any"
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
