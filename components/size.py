"""The step before a sweep that has no other."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def size(
    run_uri: str,
    workers: int,
    use_gpu: bool,
    ray_address: str,
    cluster_profile: str,
    step_cpus: str,
    step_memory: str,
) -> NamedTuple(  # type: ignore[valid-type]
    "Sizes",
    [
        ("tune_cpu_request", str),
        ("tune_cpu_limit", str),
        ("tune_memory_request", str),
        ("tune_memory_limit", str),
        ("tune_gpus", str),
    ],
):
    """Check the job of a sweep, and size its step.

    Args:
        run_uri: the run folder.
        workers: trials at a time.
        use_gpu: one GPU a trial.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.
        step_cpus: CPUs of a step that computes; one that only launches a job is small.
        step_memory: memory of a step that computes.

    Returns:
        Requests and limits of the step.
    """
    parameters = {**locals()}
    from components.sizes import job_launches, step_size
    from milcore import api

    with api.pipeline_step("size", run_uri):
        api.check_launches(job_launches(parameters, ["tune"]))
        return step_size("tune", parameters)
