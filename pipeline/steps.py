"""Image, credentials, retries and resources of every step, and the exit handler."""

import functools
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.pipeline_channel import PipelineChannel

from components import IMAGE
from components.finish import finish
from components.sizes import SMALL, Size
from milcore.runtime.step_retry import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    OWN_RETRIES,
    RETRIES,
    SCHEDULER_RETRIES,
    WAIT_FACTOR,
)

S3_SECRET, S3_KEYS = "milcore-s3", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
STORAGE_CONFIG, STORAGE_KEYS = "milcore-storage", ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
RAY_SECRET, RAY_KEYS = "milcore-ray", {"auth_token": "RAY_AUTH_TOKEN", "auth_mode": "RAY_AUTH_MODE"}
PROFILE_CONFIG, PROFILE_FOLDER = "milcore-profile", "/etc/milcore"
# the image's user; a number, for Kubernetes cannot tell that a name is not root's
USER_ID = 10001
# what a step asks its surroundings for: the launcher of RayJobs all, the others the run they belong to
FIELDS = {
    "POD_NAME": "metadata.name",
    "POD_UID": "metadata.uid",
    "POD_NAMESPACE": "metadata.namespace",
    "PIPELINE_RUN_ID": "metadata.labels['pipeline/runid']",
}

# pods of a fan-out at a time; kfp fixes it when a pipeline is compiled
PARALLEL = 50

_image = ContextVar("image", default=IMAGE)
_parallel = ContextVar("parallel", default=PARALLEL)
_retries = ContextVar("retries", default=RETRIES)


def step(task: dsl.PipelineTask, size: Size = SMALL, *, cached: bool = False, retried: bool = True) -> dsl.PipelineTask:
    """The task in the chosen image, with credentials from secrets.

    Args:
        task: the task.
        size: of its pod.
        cached: Kubeflow may reuse an earlier result: its arguments hold a digest of all it reads and writes.
        retried: try again when it fails; a step that checks input does that itself, and not after bad input.
    """
    task.set_container_image(_image.get()).set_caching_options(enable_caching=cached)
    task.set_env_variable("MILCORE_IMAGE", _image.get())
    _set_retries(task, retried=retried)
    kubernetes.set_security_context(task, run_as_user=USER_ID, run_as_group=USER_ID, run_as_non_root=True)
    kubernetes.use_secret_as_env(task, S3_SECRET, {key: key for key in S3_KEYS})
    kubernetes.use_config_map_as_env(task, STORAGE_CONFIG, {key: key for key in STORAGE_KEYS})
    for name, path in FIELDS.items():
        kubernetes.use_field_path_as_env(task, name, path)
    return sized(task, size)


def _set_retries(task: dsl.PipelineTask, *, retried: bool) -> None:
    if _retries.get() and retried:
        task.set_retry(_retries.get(), f"{FIRST_WAIT_S:g}s", WAIT_FACTOR, f"{LONGEST_WAIT_S:g}s")
        task.set_env_variable(SCHEDULER_RETRIES, str(_retries.get()))
    elif _retries.get():
        task.set_env_variable(OWN_RETRIES, str(_retries.get()))


def launcher(task: dsl.PipelineTask, size: Size, *, cached: bool = False, retried: bool = True) -> dsl.PipelineTask:
    """A step that may compute on a cluster, or checks those of the others.

    It has the Ray token and the cluster profile.

    Args:
        task: the task.
        size: of its pod.
        cached: as of ``step``; where it does compute on a cluster, its digest has to be a new one.
        retried: as of ``step``.
    """
    step(task, size, cached=cached, retried=retried)
    kubernetes.use_secret_as_env(task, RAY_SECRET, RAY_KEYS, optional=True)
    kubernetes.use_config_map_as_volume(task, PROFILE_CONFIG, PROFILE_FOLDER, optional=True)
    return task


def size_from(planned: dsl.PipelineTask, name: str) -> Size:
    """Size of a step that an earlier one has chosen."""
    return Size(*(planned.outputs[f"{name}_{quantity}"] for quantity in Size._fields))


def sized(task: dsl.PipelineTask, size: Size) -> dsl.PipelineTask:
    """The task with its resources requested and limited.

    Each may be a parameter of the pipeline or the output of a step. GPUs are asked for unless they are empty.
    """
    # kfp 2.17 hands what only resources name into no loop and no exit handler; what a task's inputs name, it does
    task.channel_inputs.extend(quantity for quantity in size if isinstance(quantity, PipelineChannel))
    task.set_cpu_request(size.cpu_request).set_cpu_limit(size.cpu_limit)
    task.set_memory_request(size.memory_request).set_memory_limit(size.memory_limit)
    if isinstance(size.gpus, str) and not size.gpus:  # a channel's equality is a condition of the pipeline
        return task
    return task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(size.gpus)


def ends_with_finish(function: Callable[..., None]) -> Callable[..., None]:
    """The pipeline function inside an exit handler.

    The handler frees the run's clusters and writes its final status.
    """
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def inside(*arguments: object) -> None:
        given = dict(zip(names, arguments, strict=True))
        ending = finish(run_uri=given["run_uri"], store_uri=given["store_uri"], ray_address=given["ray_address"])
        with dsl.ExitHandler(step(ending), name="steps"):
            function(*arguments)

    return inside


def pipeline(*, name: str, display_name: str | None = None) -> Callable[[Callable[..., Any]], BaseComponent]:
    """``dsl.pipeline``, with its function called on a thread of its own.

    kfp 2.17 inspects the whole call stack at every setting of a task, and each frame of an import that is under way
    has it look through all modules: seconds where many are imported.
    """

    def make(function: Callable[..., Any]) -> BaseComponent:
        with ThreadPoolExecutor(1) as thread:
            decorate = dsl.pipeline(name=name, display_name=display_name)
            return thread.submit(copy_context().run, decorate, function).result()

    return make


def pods_at_a_time() -> int:
    """Most pods of a fan-out at a time, in the pipeline being made."""
    return _parallel.get()


def variant(
    committed: BaseComponent, *, image: str = IMAGE, parallel: int = PARALLEL, retries: int = RETRIES
) -> BaseComponent:
    """The pipeline with another image, fan-out or number of retries.

    Args:
        committed: the pipeline as it is committed.
        image: of every step.
        parallel: pods of its fan-out at a time.
        retries: of a step that fails.
    """
    context, spec = copy_context(), committed.pipeline_spec.pipeline_info
    context.run(_image.set, image)
    context.run(_parallel.set, parallel)
    context.run(_retries.set, retries)
    return context.run(pipeline(name=spec.name, display_name=spec.display_name), committed.pipeline_func)
