"""Removal of disk caches on the nodes of a Ray cluster.

Ray's workers end without a chance to do it.
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from milcore.store.disk_cache import cache_folder, remove_entries

# for workers that are being stopped
WORKERS_END_S = 5.0
TASKS_END_S = 20.0


def remove_disk_caches() -> None:
    """Remove the disk caches on all nodes of the connected cluster.

    One that another command uses, or whose node does not answer in 20 s, stays within its bound; the next command that
    uses it removes it.
    """
    task: Any = ray.remote(num_cpus=0)(remove_cache)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray has no types for it
    of_nodes = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in nodes if node["Alive"]]
    running = [task.options(scheduling_strategy=strategy).remote() for strategy in of_nodes]
    ray.wait(running, num_returns=len(running), timeout=TASKS_END_S)


def remove_cache() -> bool:
    """Remove the disk cache of this machine; a Ray task imports this by name."""
    return remove_entries(cache_folder(), WORKERS_END_S)
