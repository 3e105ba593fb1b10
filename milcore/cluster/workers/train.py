"""Training a prepared run on Ray Train workers, the loop itself being ``milcore.training.loop``'s."""

import logging
import time
from typing import Any

import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from milcore.cluster.workers.connect import connected, cpus, environment, wait_for_room
from milcore.cluster.workers.context import RayContext, calm_logging
from milcore.config import LaunchConfig
from milcore.errors import ClusterError, MILError, UnreachableError
from milcore.runtime import storage
from milcore.runtime.progress import log_line
from milcore.training.context import CHECKPOINTS_KEPT
from milcore.training.run import train_run
from milcore.training.run_folder import CHECKPOINTS, read_spec
from milcore.training.tensorboard import RunWatch

MAX_FAILURES = 3
SECONDS_TO_NEXT = (5.0, 15.0, 45.0)
SNAPSHOT = "checkpoint_manager_snapshot.json"
# our lines once, as they are, instead of once more in Ray's log format
TRAIN_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
# what another worker would raise again; a lost one, the network and storage raise others in those that are left
REPEATING = (
    MILError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError,
    TypeError, ValueError,
)  # fmt: skip


def train_on_ray(run_uri: str, launch: LaunchConfig) -> None:
    """Train a prepared run on ``launch.workers`` workers; a run cut short goes on from its last checkpoint.

    A worker that dies is replaced, and all go on from the last checkpoint, up to MAX_FAILURES times. An error that
    would come again ends the run at once.

    Raises:
        InputError: the folder holds no prepared run.
        MILError: a worker raised it.
        ClusterError: no cluster answers, it has no room, or the workers failed; why.
    """
    run_uri = storage.absolute(run_uri)
    epochs = read_spec(run_uri).train.epochs
    with connected(launch, dashboard=True), environment(TRAIN_ENVIRONMENT):
        wait_for_room(max(1, launch.workers), reserved(launch))
        try:
            _fit(run_uri, launch, epochs)
        except (ray.train.TrainingFailedError, *storage.IO_ERRORS) as error:
            raise _failure(run_uri, error) from error


def _fit(run_uri: str, launch: LaunchConfig, epochs: int) -> None:
    """Train to the end; where storage was away when Ray's controller wrote what it knows, another one takes over."""
    for wait_s in (*SECONDS_TO_NEXT, None):
        try:
            _drop_torn_snapshot(storage.join(run_uri, CHECKPOINTS))
            _trainer(run_uri, launch, epochs).fit()
        except (ray.train.ControllerError, *storage.IO_ERRORS) as error:
            cause = error.controller_failure if isinstance(error, ray.train.ControllerError) else error
            if wait_s is None or not isinstance(cause, storage.IO_ERRORS):
                raise
            log_line(f"{_line(cause)}; going on from the last checkpoint in {wait_s:g} s")
            time.sleep(wait_s)
        else:
            return


def _trainer(run_uri: str, launch: LaunchConfig, epochs: int) -> TorchTrainer:
    return TorchTrainer(
        _work,
        train_loop_config={"run_uri": run_uri, "epochs": epochs},
        scaling_config=scaling(launch),
        torch_config=TorchConfig(backend="nccl" if launch.use_gpu else "gloo"),
        run_config=RunConfig(  # type: ignore[call-arg]  # its types are those of an older RunConfig
            name=CHECKPOINTS,
            storage_path=run_uri,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[_EndAtRepeating()],  # type: ignore[list-item]  # as above
        ),
    )


def _drop_torn_snapshot(checkpoints_uri: str) -> None:
    """Remove what Ray knows of checkpoints where writing it was cut short, or some of them are gone.

    Ray would refuse to start; without it the workers look into the folder themselves.
    """
    uri = storage.join(checkpoints_uri, SNAPSHOT)
    if not storage.exists(uri):
        return
    try:
        known = [result["checkpoint_dir_name"] for result in storage.read_json(uri)["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        known = None
    if known is None or not set(known) <= set(storage.names(checkpoints_uri)):
        storage.remove(uri)


class _EndAtRepeating(UserCallback):
    """Ends a run at an error that would come again; Ray itself makes no difference between it and a lost worker.

    A RuntimeError says by its type alone neither: torch raises it for both. It ends the run when it comes again, word
    for word.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002 - Ray calls it so
        """Raise it in Ray's controller, which then ends the run instead of starting its workers anew."""
        for error in worker_exceptions.values():
            again = type(error) is RuntimeError and str(error) in self._said
            if again or would_repeat(error):
                _mute_tracebacks()
                raise error
            self._said.add(str(error))


def would_repeat(error: Exception) -> bool:
    """Whether whoever takes over from the worker that raised this would raise it too."""
    return isinstance(error, REPEATING) and not isinstance(error, UnreachableError)


def _failure(run_uri: str, error: Exception) -> MILError:
    """What milcore raised in a worker, or else a line about the first worker's exception."""
    cause = error
    if isinstance(error, ray.train.ControllerError):
        cause = error.controller_failure
    elif isinstance(error, ray.train.WorkerGroupError):
        cause = next(iter(error.worker_failures.values()))
    if isinstance(cause, MILError):
        return cause
    return ClusterError(f"training {run_uri} failed: {_line(cause)}")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _mute_tracebacks() -> None:
    """For an error that is one clear line."""
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)


def scaling(launch: LaunchConfig) -> ScalingConfig:
    """The workers and what each of them reserves."""
    return ScalingConfig(
        num_workers=max(1, launch.workers), use_gpu=launch.use_gpu, resources_per_worker=reserved(launch)
    )


def reserved(launch: LaunchConfig) -> dict[str, float]:
    """What a worker reserves.

    On this machine's own cluster they share its CPUs, so that more workers than CPUs can start too; on another each
    takes one CPU.
    """
    share = cpus() / max(1, launch.workers) if launch.ray_address == "local" else 1.0
    resources = {"CPU": float(int(share)) if share > 1.0 else share}
    return resources | {"GPU": 1.0} if launch.use_gpu else resources


def _work(config: dict[str, Any]) -> None:
    """What every worker runs."""
    calm_logging()
    checkpoints_uri = storage.join(config["run_uri"], CHECKPOINTS)
    try:
        train_run(config["run_uri"], RayContext(checkpoints_uri, RunWatch(config["run_uri"], config["epochs"])))
    except MILError:
        _mute_tracebacks()
        raise
