"""Train a prepared run on Ray Train workers.

Each worker runs the loop of ``milcore.training.loop``.
"""

import logging
import posixpath
import time
from typing import Any

import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from milcore.cluster.workers.capacity import wait_for_workers
from milcore.cluster.workers.connect import connected
from milcore.cluster.workers.context import RayContext, quiet_logging
from milcore.cluster.workers.disk_caches import remove_disk_caches
from milcore.config import LaunchConfig
from milcore.errors import ClusterError, DamageError, MILError, UnreachableError
from milcore.runtime import storage
from milcore.runtime.limits import cpus
from milcore.runtime.progress import log_line
from milcore.runtime.thread_limit import default_environment
from milcore.training.context import CHECKPOINTS_KEPT
from milcore.training.run import train_run
from milcore.training.run_folder import Run
from milcore.training.tensorboard import RunObserver

MAX_FAILURES = 3
SECONDS_BETWEEN_ATTEMPTS = (5.0, 15.0, 45.0)
SNAPSHOT = "checkpoint_manager_snapshot.json"
# print lines as they are, not a second time in Ray's log format
TRAIN_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
# errors that a restarted worker would raise again; a lost worker, the network and storage raise errors of other types
DETERMINISTIC_ERRORS = (
    MILError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError,
    TypeError, ValueError,
)  # fmt: skip


def train_on_ray(run_uri: str, launch: LaunchConfig) -> None:
    """Train a prepared run on ``launch.workers`` workers.

    An interrupted run is resumed from its last checkpoint. A worker that dies is replaced, and all resume from the last
    checkpoint, up to MAX_FAILURES times. A deterministic error ends the run at once.

    Raises:
        InputError: the folder holds no prepared run.
        MILError: a worker raised it.
        ClusterError: no cluster answers, it is too small, or the workers failed; the text has the reason.
    """
    run_uri = storage.absolute(run_uri)
    config = Run(run_uri).spec().train
    with connected(launch), default_environment(TRAIN_ENVIRONMENT):
        wait_for_workers(launch, max(1, launch.workers), worker_resources(launch))
        try:
            _fit(run_uri, launch, config.epochs)
        except (ray.train.TrainingFailedError, *storage.IO_ERRORS) as error:
            raise _failure(run_uri, error) from error
        if config.disk_cache_mb:
            remove_disk_caches()


def _fit(run_uri: str, launch: LaunchConfig, epochs: int) -> None:
    """Train to the end.

    Where storage was unavailable when Ray's controller wrote its snapshot, another controller takes over.
    """
    for wait_s in (*SECONDS_BETWEEN_ATTEMPTS, None):
        try:
            _drop_torn_snapshot(Run(run_uri).checkpoints_uri)
            _trainer(run_uri, launch, epochs).fit()
        except (ray.train.ControllerError, *storage.IO_ERRORS) as error:
            cause = error.controller_failure if isinstance(error, ray.train.ControllerError) else error
            if wait_s is None or not isinstance(cause, storage.IO_ERRORS):
                raise
            log_line(f"{_line(cause)}; going on from the last checkpoint in {wait_s:g} s")
            time.sleep(wait_s)
        else:
            return


class _Trainer(TorchTrainer):
    """Ray's trainer, which leaves Ctrl-C to the command.

    Its own handler waits for the workers and exits with another code.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class _LocalTrainer(_Trainer):
    """Ray's trainer on a cluster that ends with this process.

    Nothing needs to free what a killed run had reserved. The actor that does so asks Ray's dashboard, and fails beside
    another Ray on this machine.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # the types are those of an older trainer
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def _trainer(run_uri: str, launch: LaunchConfig, epochs: int) -> TorchTrainer:
    trainer = _LocalTrainer if launch.ray_address == "local" else _Trainer
    return trainer(
        _train_worker,
        train_loop_config={"run_uri": run_uri, "epochs": epochs},
        scaling_config=scaling_config(launch),
        torch_config=TorchConfig(backend="nccl" if launch.use_gpu else "gloo"),
        run_config=RunConfig(  # type: ignore[call-arg]  # its types are those of an older RunConfig
            name=posixpath.basename(Run(run_uri).checkpoints_uri),
            storage_path=run_uri,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[_AbortOnRepeatedError()],  # type: ignore[list-item]  # as above
        ),
    )


def _drop_torn_snapshot(checkpoints_uri: str) -> None:
    """Remove Ray's snapshot of checkpoints if it is incomplete or names missing ones.

    Ray would refuse to start; without it the workers list the folder themselves.
    """
    uri = storage.join(checkpoints_uri, SNAPSHOT)
    if not storage.exists(uri):
        return
    try:
        listed = [result["checkpoint_dir_name"] for result in storage.read_json(uri)["checkpoint_results"]]
    except (DamageError, KeyError, TypeError):
        listed = None
    if listed is None or not set(listed) <= set(storage.names(checkpoints_uri)):
        storage.remove(uri)


class _AbortOnRepeatedError(UserCallback):
    """Ends a run at a deterministic error, which Ray treats like a lost worker.

    The type of a RuntimeError does not tell them apart: torch raises it for both. It ends the run when it occurs a
    second time with the same text.
    """

    def __init__(self) -> None:
        self._runtime_errors: set[str] = set()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002 - Ray calls it so
        """Raise the error in Ray's controller, which ends the run instead of restarting workers."""
        for error in worker_exceptions.values():
            is_repeated = type(error) is RuntimeError and str(error) in self._runtime_errors
            if is_repeated or is_deterministic(error):
                _mute_tracebacks()
                raise error
            self._runtime_errors.add(str(error))
        log_line(
            f"a worker was lost: {_line(next(iter(worker_exceptions.values())))[:200]}; going on from the checkpoint"
        )


def is_deterministic(error: Exception) -> bool:
    """True where a worker that is started again would raise the error too."""
    return isinstance(error, DETERMINISTIC_ERRORS) and not isinstance(error, UnreachableError)


def _failure(run_uri: str, error: Exception) -> MILError:
    """The MILError raised in a worker, else a ClusterError with the first worker's exception."""
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
    """Silence Ray Train's log, for an error that is one clear line."""
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)


def scaling_config(launch: LaunchConfig) -> ScalingConfig:
    """Number of workers and the resources that each reserves."""
    return ScalingConfig(
        num_workers=max(1, launch.workers), use_gpu=launch.use_gpu, resources_per_worker=worker_resources(launch)
    )


def worker_resources(launch: LaunchConfig) -> dict[str, float]:
    """Resources that a worker reserves.

    On a local cluster the workers share its CPUs, so that more workers than CPUs can start too; on another each
    takes one CPU.
    """
    share = cpus() / max(1, launch.workers) if launch.ray_address == "local" else 1.0
    resources = {"CPU": float(int(share)) if share > 1.0 else share}
    return resources | {"GPU": 1.0} if launch.use_gpu else resources


def _train_worker(config: dict[str, Any]) -> None:
    """Train in one worker; Ray runs this on each of them."""
    quiet_logging()
    checkpoints_uri = Run(config["run_uri"]).checkpoints_uri
    try:
        train_run(config["run_uri"], RayContext(checkpoints_uri, RunObserver(config["run_uri"], config["epochs"])))
    except MILError:
        _mute_tracebacks()
        raise
