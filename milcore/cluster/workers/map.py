"""Parallel map over the workers of a Ray cluster."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from milcore.cluster.workers.capacity import task_resources, wait_for_workers
from milcore.config import LaunchConfig
from milcore.errors import ClusterError, MILError

T = TypeVar("T")
R = TypeVar("R")


def map_on_ray(
    function: Callable[[T], R],
    items: Iterable[T],
    killed: Callable[[T], R] | None = None,
    *,
    launch: LaunchConfig,
) -> Iterator[R]:
    """Apply a function to every item on ``launch.workers`` workers of the connected cluster.

    Each worker reserves one CPU (and GPU). Results come in the order of completion. An item is taken from the
    iterable only when a worker is free for it: however many there are, Ray knows of as many tasks as workers. The first
    worker's room is waited for; tasks that wait request the others'.

    Args:
        function: importable; sent to the cluster once.
        items: arguments, sent one per task.
        killed: result of an item whose worker died more often than Ray retries; None: that is an error.
        launch: number of workers, and a GPU for each or none.

    Raises:
        MILError: the function raised it.
        ClusterError: the cluster has no room, the function failed otherwise, or the worker of an item was lost.
    """
    wait_for_workers(launch, 1, task_resources(launch))
    task: Any = ray.remote(num_cpus=1, num_gpus=int(launch.use_gpu))(apply)
    function_ref = ray.put(function)
    running: dict[ray.ObjectRef[R], T] = {}
    for item in items:
        if len(running) == max(1, launch.workers):
            yield _next_result(running, killed)
        running[task.remote(function_ref, item)] = item
    while running:
        yield _next_result(running, killed)


def apply(function: Callable[[T], R], item: T) -> R:
    """Value of the function; a Ray task imports this by name."""
    return function(item)


def _next_result(running: dict[Any, T], killed: Callable[[T], R] | None) -> R:
    """Remove the first task that is complete, and return its result."""
    (completed,), _ = ray.wait(list(running), num_returns=1)
    item = running.pop(completed)
    try:
        result: R = ray.get(completed)
    except RayTaskError as error:
        if isinstance(error.cause, MILError):
            raise error.cause from None
        raise ClusterError(f"a Ray worker failed: {error.cause!r}") from error
    except RayError as error:
        if isinstance(error, WorkerCrashedError | OutOfMemoryError) and killed is not None:
            return killed(item)
        raise ClusterError(f"a Ray worker was lost: {' '.join(str(error).split())}") from error
    return result
