"""The step before a sweep that has no other."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def size(workers: int, ray_address: str, step_cpus: str, step_memory: str) -> NamedTuple(  # type: ignore[valid-type]
    "Sizes",
    [
        ("tune_cpu_request", str),
        ("tune_cpu_limit", str),
        ("tune_memory_request", str),
        ("tune_memory_limit", str),
        ("tune_gpus", str),
    ],
):
    """Size the step that sweeps, by whether it computes or launches a job.

    Args:
        workers: trials at a time.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        step_cpus: CPUs of a step that computes; one that only launches a job is small.
        step_memory: memory of a step that computes.

    Returns:
        Requests and limits of the step.
    """
    parameters = {**locals()}
    from components.sizes import step_size
    from milcore import api

    with api.one_line_errors():
        return step_size("tune", parameters)
