"""The one fan-out across machines: a function over items, results handed back as they come."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from milcore.config import LaunchConfig
from milcore.errors import ClusterError, MILError

T = TypeVar("T")
R = TypeVar("R")


def map_on_ray(function: Callable[[T], R], items: Iterable[T], launch: LaunchConfig) -> Iterator[R]:
    """Apply a function to every item on ``launch.workers`` workers of the connected cluster, one CPU (and GPU) each.

    Results come in the order in which they end. No more items are taken than there are workers to work on them.

    Raises:
        MILError: the function raised it.
        ClusterError: the function failed otherwise, or its worker died more often than Ray tries again.
    """
    work: Any = ray.remote(num_cpus=1, num_gpus=int(launch.use_gpu))(function_on)
    held = ray.put(function)
    running: list[ray.ObjectRef[R]] = []
    for item in items:
        if len(running) == max(1, launch.workers):
            yield _next(running)
        running.append(work.remote(held, item))
    while running:
        yield _next(running)


def function_on(function: Callable[[T], R], item: T) -> R:
    """The function's value; Ray runs this by name."""
    return function(item)


def _next(running: list[Any]) -> Any:
    """Take out and return the result that ends first."""
    (ended,), rest = ray.wait(running, num_returns=1)
    running[:] = rest
    try:
        return ray.get(ended)
    except RayTaskError as error:
        if isinstance(error.cause, MILError):
            raise error.cause from None
        raise ClusterError(f"a Ray worker failed: {error.cause!r}") from error
    except RayError as error:
        raise ClusterError(f"a Ray worker was lost: {' '.join(str(error).split())}") from error
