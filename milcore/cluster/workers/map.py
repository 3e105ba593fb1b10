"""Parallel map over the workers of a Ray cluster."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from milcore.config import LaunchConfig
from milcore.errors import ClusterError, MILError

T = TypeVar("T")
R = TypeVar("R")


def map_on_ray(function: Callable[[T], R], items: Iterable[T], launch: LaunchConfig) -> Iterator[R]:
    """Apply a function to every item on ``launch.workers`` workers of the connected cluster.

    Each worker reserves one CPU (and GPU). Results come in the order of completion. An item is taken from the
    iterable only when a worker is free for it.

    Raises:
        MILError: the function raised it.
        ClusterError: the function failed otherwise, or its worker died more often than Ray retries.
    """
    task: Any = ray.remote(num_cpus=1, num_gpus=int(launch.use_gpu))(apply)
    function_ref = ray.put(function)
    running: list[ray.ObjectRef[R]] = []
    for item in items:
        if len(running) == max(1, launch.workers):
            yield _next_result(running)
        running.append(task.remote(function_ref, item))
    while running:
        yield _next_result(running)


def apply(function: Callable[[T], R], item: T) -> R:
    """Value of the function; a Ray task imports this by name."""
    return function(item)


def _next_result(running: list[Any]) -> Any:
    """Remove and return the first result that is complete."""
    (completed,), rest = ray.wait(running, num_returns=1)
    running[:] = rest
    try:
        return ray.get(completed)
    except RayTaskError as error:
        if isinstance(error.cause, MILError):
            raise error.cause from None
        raise ClusterError(f"a Ray worker failed: {error.cause!r}") from error
    except RayError as error:
        raise ClusterError(f"a Ray worker was lost: {' '.join(str(error).split())}") from error
