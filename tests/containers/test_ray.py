"""Ray on three machines, as far as containers are: a head and two workers, of which one dies while they train."""

import secrets
import subprocess
import time

import pytest

from milcore.cluster.launch import train_with
from milcore.config import LaunchConfig
from milcore.runtime import storage
from tests.cluster.workers.test_train import TRAIN, distance, epochs_seen, prepared
from tests.containers.conftest import CONFINED, Engine, env_flags

LONG = TRAIN.model_copy(update={"epochs": 400, "checkpoint_every": 5, "learning_rate": 0.001, "patience": 400})


def start_ray(engine: Engine, surroundings: dict[str, str], name: str, *how: str) -> str:
    flags = [*CONFINED, "--shm-size=512m", *env_flags(surroundings)]
    return engine.start(name, "ray", "start", "--block", *how, flags=flags)


def wait_for_head(engine: Engine, head: str) -> None:
    """As KubeRay's init container does: a worker gives up on a head that is not there yet."""
    for _ in range(60):
        if engine("exec", head, "ray", "health-check", "--address=localhost:6379", check=False).returncode == 0:
            return
        time.sleep(1.0)
    pytest.fail(f"no head: {engine('logs', head, check=False).stdout[-2000:]}")


def wait_for(condition: object, what: str, process: subprocess.Popen[str], seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, f"{what}: {process.communicate()}"
        assert time.monotonic() < until, what
        time.sleep(0.2)


@pytest.mark.slow
def test_a_worker_that_dies_changes_nothing_of_what_is_learnt(engine: Engine, store_keys: dict[str, str]) -> None:
    alone, together = prepared("s3://milcore/ray", "alone", LONG), prepared("s3://milcore/ray", "together", LONG)
    surroundings = {
        **store_keys, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    head = start_ray(engine, surroundings, "head", "--head", "--num-cpus=0", "--dashboard-host=0.0.0.0", "--port=6379")
    wait_for_head(engine, head)
    joining = ("--address=head:6379", "--num-cpus=1")
    doomed = [start_ray(engine, surroundings, f"worker-{k}", *joining) for k in range(2)][1]
    flags = [*CONFINED, "--network", engine.network, *env_flags(surroundings)]
    command = [engine.name, "run", "--rm", *flags, engine.image, "python", "-m", "milcore.cluster", "train", together,
               "--workers", "2", "--ray-address", "http://head:8265"]  # fmt: skip
    with subprocess.Popen(
        command, env=engine.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as step:
        checkpoints = storage.join(together, "checkpoints")
        wait_for(lambda: any(n.isdigit() for n in storage.names(checkpoints)), "no checkpoint", step)
        engine("kill", doomed)
        assert not storage.exists(storage.join(together, "model.safetensors")), "it died too late to matter"
        start_ray(engine, surroundings, "worker-2", *joining)
        said, _ = step.communicate(timeout=600)
    assert step.returncode == 0, said[-3000:]
    train_with(alone, LaunchConfig())
    assert epochs_seen(together) == epochs_seen(alone)
    assert distance(together, alone) <= 1e-9
