"""Steps on a cluster whose nodes come after the work has asked for them, or never."""

import contextvars
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milcore.cluster.workers.capacity import set_scale_up_timeout, wait_for_workers
from milcore.config import LaunchConfig, SplitConfig, TrainConfig
from milcore.errors import ClusterError
from milcore.ingestion.cohort import stored_counts
from milcore.store.store import PatchStore
from milcore.training.run import prepare_run
from tests.cluster.workers.test_ingest import planned
from tests.cohorts import write_features, write_store
from tests.ray_node import Head, head_node, worker_node

OTHER = LaunchConfig(ray_address="auto")
FOLDS = SplitConfig(folds=2)
TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=1, batch_size=4)


@pytest.fixture(scope="module")
def head(s3: str) -> Iterator[Head]:
    """A head that runs no work, as those of Kubernetes are."""
    with head_node(cpus=0) as head:
        yield head


class Driver:
    """A step that joined the cluster, and the lines it has logged."""

    def __init__(self, head: Head, *arguments: str) -> None:
        command = [sys.executable, "-m", "milcore.cluster", *arguments, "--ray-address", head.gcs]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        self.lines: list[str] = []

    def read(self, until: Callable[[str], object] = lambda _: False) -> str:
        """The first line that is looked for; at the end of the log, the last one."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))
            if until(line):
                break
        return self.lines[-1]

    def end(self) -> int:
        """Exit code, once the log is read."""
        self.read()
        return self._process.wait()


def waits(line: str) -> bool:
    return line.startswith("waiting for room")


@pytest.mark.parametrize("step", ["encode", "ingest", "train", "folds"])
def test_every_step_gives_up_where_no_node_comes(head: Head, tmp_path: Path, step: str) -> None:
    driver = Driver(head, *prepared(step, tmp_path), "--workers", "1", "--scale-up-seconds", "2")
    assert driver.end() == 1, driver.lines
    assert re.fullmatch(
        r"milcore: workers: expected at most 0 of 1 CPU each, got 1, and the cluster did not grow in 2 s; allowed: .*",
        driver.lines[-1],
    )


def prepared(step: str, folder: Path) -> tuple[str, str]:
    if step == "ingest":
        return step, planned(str(folder), folder)
    store = write_store(str(folder / "store"))
    if step == "encode":
        return step, store.uri
    write_features(store)
    prepare_run(store.uri, str(folder / "run"), TRAIN, FOLDS if step == "folds" else SplitConfig())
    return "train", str(folder / "run")


def test_steps_ask_for_their_workers_and_take_those_whose_nodes_come_late(head: Head, tmp_path: Path) -> None:
    """Of a GPU's node that came Ray knows; what torch says of it is another matter."""
    store, slides = write_store(str(tmp_path / "features"), slides=4), planned(str(tmp_path), tmp_path)
    encoding = Driver(head, "encode", store.uri, "--workers", "2")
    ingestion = Driver(head, "ingest", slides, "--workers", "2", "--patch-size", "64")
    on_gpu = Driver(head, "encode", store.uri, "--workers", "1", "--use-gpu")
    for driver, request in ((encoding, "2 workers (1 CPU each)"), (ingestion, "1 workers (1 CPU each)"),
                            (on_gpu, "1 workers (1 CPU, 1 GPU each)")):  # fmt: skip
        assert driver.read(waits).startswith(f"waiting for room for {request}: the cluster has room for 0; ")
    with worker_node(head.gcs), worker_node(head.gcs):
        assert (encoding.end(), ingestion.end()) == (0, 0), encoding.lines + ingestion.lines
        with worker_node(head.gcs, gpus=1):
            on_gpu.end()
    assert "encoding with 2 workers of 1 CPUs" in encoding.lines
    assert all(store.slide(name).has_features("efficientnet_lite0") for name in store.slide_ids())
    assert len(stored_counts(PatchStore(slides))["ok"]) == 3
    assert "encoding with 1 workers of 1 CPUs" in on_gpu.lines


def test_a_cluster_without_room_is_named_with_the_arithmetic(
    local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    context = contextvars.copy_context()
    context.run(set_scale_up_timeout, 1.0)
    with pytest.raises(ClusterError, match=r"workers: expected at most \d+ of 1 CPU each, got 1000, .* grow in 1 s"):
        context.run(wait_for_workers, OTHER, 1000, {"CPU": 1.0})
    assert "waiting for room for 1000 workers" in capfd.readouterr().err


def test_a_step_that_can_do_with_fewer_workers_goes_on_once_no_node_comes(local_ray: None) -> None:
    assert 1 <= wait_for_workers(OTHER, 1000, {"CPU": 1.0}, settle_s=1.0) < 1000


def test_a_cluster_of_this_process_does_not_grow_and_is_not_waited_for(
    local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClusterError, match=r"at most 0 of 1 CPU, 1 GPU each, got 1; allowed: .* leave out --use-gpu"):
        wait_for_workers(LaunchConfig(), 1, {"CPU": 1.0, "GPU": 1.0}, settle_s=60.0)
    assert wait_for_workers(LaunchConfig(), 1000, {"CPU": 1.0}, settle_s=60.0) >= 1
    assert "waiting" not in capfd.readouterr().err
