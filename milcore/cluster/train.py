"""Training a prepared run on Ray Train workers, the loop itself being ``milcore.train``'s."""

from typing import Any

import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from milcore import storage
from milcore.cluster.connect import connected, cpus, environment, wait_for_room
from milcore.cluster.context import RayContext, calm_logging
from milcore.config import LaunchConfig
from milcore.errors import ClusterError
from milcore.event_file import RunWatch
from milcore.run import CHECKPOINTS, read_spec, train_run
from milcore.train import CHECKPOINTS_KEPT

MAX_FAILURES = 3
# our lines once, as they are, instead of once more in Ray's log format
TRAIN_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}


def train_on_ray(run_uri: str, launch: LaunchConfig) -> None:
    """Train a prepared run on ``launch.workers`` workers; a run cut short goes on from its last checkpoint.

    A worker that dies is replaced, and all go on from the last checkpoint, up to MAX_FAILURES times.

    Raises:
        InputError: the folder holds no prepared run.
        ClusterError: no cluster answers, it has no room, or the workers failed; why.
    """
    run_uri = storage.absolute(run_uri)
    epochs = read_spec(run_uri).train.epochs
    with connected(launch, dashboard=True), environment(TRAIN_ENVIRONMENT):
        wait_for_room(max(1, launch.workers), reserved(launch))
        trainer = TorchTrainer(
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
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise ClusterError(f"training {run_uri} failed: {_reason(error)}") from error


def _reason(error: ray.train.TrainingFailedError) -> str:
    """The last line of the first worker's traceback: the exception itself."""
    failures = list(error.worker_failures.values()) if isinstance(error, ray.train.WorkerGroupError) else [error]
    return str(failures[0]).strip().rpartition("\n")[2].removeprefix("milcore.errors.")


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
    train_run(config["run_uri"], RayContext(checkpoints_uri, RunWatch(config["run_uri"], config["epochs"])))
