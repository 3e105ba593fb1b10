"""A run to disturb, the weights it has to end with, and what starts, watches and kills it."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from milcore.cluster.launch import train_with
from milcore.config import LaunchConfig, SplitConfig, TrainConfig, TuneConfig
from milcore.mil.model import make_model
from milcore.runtime import storage
from milcore.training.run import prepare_run
from milcore.training.sweep import prepare_sweep
from tests.cohorts import write_features, write_store
from tests.faults.processes import MARK, marked
from tests.faults.proxy import FaultyProxy

# 7 training bags in batches of 2 and a checkpoint after every epoch; each epoch waits 0.1 s for Ray
TRAIN = TrainConfig(
    features="mean_rgb", hidden=8, attention_hidden=4, dropout=0.5, epochs=30, batch_size=2, checkpoint_every=1,
    learning_rate=0.01, patience=99, precision="fp64", ema_decay=0.5, class_balance="weighted",
)  # fmt: skip
SWEEP = TuneConfig(
    poolings=("max", "mean", "attention", "gated_attention"), trials=12,
    train=TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=16, batch_size=4, checkpoint_every=2),
)  # fmt: skip
TIMES_STARTED = 4
Driver = subprocess.Popen[bytes]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            if item.get_closest_marker("long") is None:
                item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


class Training:
    """A run and the command that trains it, in processes marked by a variable of their environment."""

    def __init__(self, run_uri: str, *options: str, **surroundings: str) -> None:
        self.run_uri = run_uri
        self.mark = uuid.uuid4().hex
        self._command = [sys.executable, "-m", "milcore.cluster", "train", run_uri, *options]
        self._surroundings = os.environ | surroundings | {MARK: self.mark}
        self._log = tempfile.NamedTemporaryFile(prefix="milcore-faults-")  # noqa: SIM115 - a pipe would fill up and stop it

    def start(self) -> Driver:
        """The driver, in a session of its own."""
        return subprocess.Popen(
            self._command, env=self._surroundings, start_new_session=True, stdout=self._log, stderr=subprocess.STDOUT
        )

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()

    @property
    def log(self) -> str:
        """Output of all drivers so far."""
        return Path(self._log.name).read_text(errors="replace")

    def end(self, driver: Driver) -> None:
        """Wait for the driver; where it failed, the same command again, as a person or a pipeline would."""
        for _ in range(TIMES_STARTED):
            if driver.wait(timeout=600) == 0:
                return
            driver = self.start()
        driver.kill()
        pytest.fail(f"the run did not end: {self.log[-3000:]}")

    def wait_until(self, true: Callable[[], bool], driver: Driver, seconds: float = 600.0) -> None:
        """Wait for something that happens while the driver runs."""
        deadline = time.monotonic() + seconds
        while not true():
            assert driver.poll() is None, f"the driver ended too soon: {self.log[-3000:]}"
            assert time.monotonic() < deadline, f"it did not happen: {self.log[-3000:]}"
            time.sleep(0.02)

    def has_checkpoint(self, at_least: int = 2) -> bool:
        """True where the run has a checkpoint of that epoch or a later one."""
        names = storage.names(storage.join(self.run_uri, "checkpoints"))
        return any(name.isdigit() and int(name) >= at_least for name in names)

    def processes(self, title: str) -> list[int]:
        """Ids of the processes of this run whose command line begins so."""
        return marked(self.mark, title)


@pytest.fixture
def disturbed() -> Iterator[Callable[..., Training]]:
    """Makes a ``Training``; nothing of it outlives the test."""
    made: list[Training] = []

    def make(run_uri: str, *options: str, **surroundings: str) -> Training:
        made.append(Training(run_uri, *options, **surroundings))
        return made[-1]

    yield make
    for training in made:
        for pid in training.processes(""):
            with contextlib.suppress(ProcessLookupError):
                kill(pid)
        training.close()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def prepared(folder_uri: str) -> str:
    """A run folder beside its store."""
    store, run = storage.join(folder_uri, "store"), storage.join(folder_uri, "run")
    write_features(write_store(store))
    prepare_run(store, run, TRAIN, SplitConfig())
    return run


def prepared_sweep(folder_uri: str) -> str:
    """A sweep folder beside its store."""
    store, out = storage.join(folder_uri, "store"), storage.join(folder_uri, "sweep")
    write_features(write_store(store))
    prepare_sweep(store, out, SWEEP, SplitConfig())
    return out


def weights(run: str) -> torch.Tensor:
    tensors = load(storage.read_bytes(storage.join(run, "model.safetensors")))
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The weights of the same run, alone and in peace."""
    run = prepared(str(tmp_path_factory.mktemp("undisturbed")))
    train_with(run, LaunchConfig())
    return weights(run)


@pytest.fixture
def as_undisturbed(undisturbed: torch.Tensor) -> Callable[[str], None]:
    """Holds a run to the undisturbed one: the same weights, and every epoch in its history once."""
    model = make_model(TRAIN, 3, classes=2)
    start = torch.cat([value.double().flatten() for _, value in sorted(model.state_dict().items())])

    def check(run: str) -> None:
        assert (weights(run) - undisturbed).norm() <= 1e-9 * (undisturbed - start).norm()
        rows = storage.read_table(storage.join(run, "history.parquet")).to_pylist()
        assert [r["epoch"] for r in rows if (r["split"], r["metric"]) == ("train", "loss")] == list(range(TRAIN.epochs))

    return check


@pytest.fixture
def faulty_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy in front of the S3 server of the tests."""
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
    yield proxy
    proxy.close()
