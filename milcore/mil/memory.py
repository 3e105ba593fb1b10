"""Memory of a worker: its cache of instances, and its activations.

Settings that are not given are shares of the memory that this process may use, divided by the workers that share it.
"""

import tempfile
from pathlib import Path

from milcore.config import ACTIVATION_MB, TrainConfig
from milcore.runtime.limits import is_in_memory, memory_bytes

CACHE_SHARE = 1 / 4
ACTIVATION_SHARE = 1 / 8
# the rest is the process itself, gradients, batches read ahead and Ray
SHARE_IN_ALL = 3 / 4
# a pod has 20 GiB for temporary files
SWEEP_DISK_CACHE_MB = 8_000.0


def worker_mb(workers: int = 1) -> float:
    """Memory of each of so many workers here, MB."""
    return memory_bytes() / 1e6 / workers


def cache_mb(config: TrainConfig, workers: int = 1) -> float:
    """Size of a worker's cache of instances, MB."""
    return worker_mb(workers) * CACHE_SHARE if config.cache_mb is None else config.cache_mb


def activation_mb(config: TrainConfig, workers: int = 1) -> float:
    """Memory for the activations of a worker, MB."""
    share = min(ACTIVATION_MB, worker_mb(workers) * ACTIVATION_SHARE)
    return share if config.activation_mb is None else config.activation_mb


def sweep_disk_cache_mb(config: TrainConfig, workers: int) -> float:
    """Size of the disk cache of a sweep on each machine, MB.

    None is kept for one trial at a time, nor where temporary files lie in memory.

    Args:
        config: as given.
        workers: trials at a time on a machine.
    """
    if config.disk_cache_mb is not None:
        return config.disk_cache_mb
    return SWEEP_DISK_CACHE_MB if workers > 1 and not is_in_memory(Path(tempfile.gettempdir())) else 0.0


def with_memory(config: TrainConfig, workers: int) -> TrainConfig:
    """The config with the memory of each of so many workers here in numbers."""
    return config.model_copy(
        update={"cache_mb": cache_mb(config, workers), "activation_mb": activation_mb(config, workers)}
    )


def memory_line(config: TrainConfig, workers: int) -> str:
    """A line on the memory of each worker; a warning where it lacks.

    Args:
        config: as given.
        workers: that share the memory of this process.
    """
    cache, activations, each = cache_mb(config, workers), activation_mb(config, workers), worker_mb(workers)
    of_each = f"cache_mb {cache:.0f} and activation_mb {activations:.0f} of {each:,.0f} MB" + (
        f" for each of {workers} workers" if workers > 1 else ""
    )
    if cache + activations <= each * SHARE_IN_ALL:
        return f"memory: {of_each}"
    return (
        f"warning: memory: {of_each}, which does not fit; allowed: {each * SHARE_IN_ALL:,.0f} together; leave both out "
        "for shares of it"
    )
