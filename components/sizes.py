"""CPUs, memory and GPUs of the steps' pods.

A step that only launches a job waits: what it reserves is taken from its own workers.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from milcore.config import LaunchConfig, PipelineSettings

# steps whose size the first one chooses, and the parameter that counts their workers
WORKERS = {"ingest": "ingest_workers", "encode": "encode_workers", "tune": "workers", "train": "workers"}


class Size(NamedTuple):
    """Requests and limits of a pod.

    Kubernetes' quantities, or channels of a pipeline that carry them.
    """

    cpu_request: str
    cpu_limit: str
    memory_request: str
    memory_limit: str
    gpus: str = ""


# a launcher's memory was measured at 228 MiB, that of the others is below
SMALL = Size("200m", "1", "512Mi", "2Gi")


def step_size(step: str, parameters: Mapping[str, object]) -> Size:
    """Size of a step that ingests, encodes, sweeps or trains.

    Args:
        step: its name.
        parameters: of the pipeline; ``ray_address``, the step's workers, and the size of a step that computes.
    """
    if is_launcher(step, step_launch(step, parameters)):
        return SMALL._replace(gpus="0")
    cpus, memory = str(parameters["step_cpus"]), str(parameters["step_memory"])
    return Size(cpus, cpus, memory, memory, str(parameters.get("step_gpus", "0")))


def step_launch(step: str, parameters: Mapping[str, object]) -> LaunchConfig:
    """Machines and workers of a step; ingestion computes on CPUs."""
    of_step = {"workers": parameters[WORKERS[step]], **({"use_gpu": False} if step == "ingest" else {})}
    return PipelineSettings({**parameters, **of_step}, "").launch


def is_launcher(step: str, launch: LaunchConfig) -> bool:
    """True where a step only launches a job.

    A sweep has no trials of its own: 0 are as many as there is room for.
    """
    return launch.names_job if step == "tune" else launch.is_job


def job_launches(parameters: Mapping[str, object], steps: Iterable[str] = WORKERS) -> list[tuple[str, LaunchConfig]]:
    """Machines of steps that launch a job, each with its parameter of workers."""
    launches = {step: step_launch(step, parameters) for step in steps}
    return [(WORKERS[step], launch) for step, launch in launches.items() if is_launcher(step, launch)]


def step_sizes(parameters: Mapping[str, object]) -> tuple[str, ...]:
    """Sizes of the steps in the order of ``WORKERS``, one quantity after the other."""
    return tuple(quantity for step in WORKERS for quantity in step_size(step, parameters))
