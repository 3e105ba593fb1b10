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

    def __init__(self, head: Head, *arguments: str, program: tuple[str, str] = ("-m", "milcore.cluster")) -> None:
        command = [sys.executable, *program, *arguments, "--ray-address", head.gcs]
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


@pytest.mark.parametrize(
    "step", ["encode", *(pytest.param(step, marks=pytest.mark.long) for step in ("ingest", "train", "folds"))]
)
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
    slides = planned(str(tmp_path), tmp_path)
    ingestion = Driver(head, "ingest", slides, "--workers", "2", "--patch-size", "64")
    store = write_store(str(tmp_path / "features"), slides=1)
    on_gpu = Driver(head, "encode", store.uri, "--workers", "1", "--use-gpu")
    for driver, request in ((ingestion, "1 CPU each"), (on_gpu, "1 CPU, 1 GPU each")):
        assert driver.read(waits).startswith(f"waiting for room for 1 workers ({request}): the cluster has room for 0")
    with worker_node(head.gcs):
        assert ingestion.end() == 0, ingestion.lines
        with worker_node(head.gcs, gpus=1):
            on_gpu.end()
    assert len(stored_counts(PatchStore(slides))["ok"]) == 3
    assert "encoding with 1 workers of 1 CPUs" in on_gpu.lines


# a driver whose first worker encodes nothing before a second one has begun
FIRST_WAITS = """
import sys, time
from pathlib import Path
from milcore.cluster import __main__ as command
from milcore.cluster.workers import encode
class WaitingEncoder(encode.SlideEncoder):
    def steps(self):
        try:
            Path({folder!r}, "first").touch(exist_ok=False)
        except FileExistsError:
            Path({folder!r}, "second").touch()
        while not Path({folder!r}, "second").exists():
            time.sleep(0.1)
        yield from super().steps()
encode.SlideEncoder = WaitingEncoder
command.main(sys.argv[1:])
"""


def test_a_worker_whose_node_comes_while_others_encode_joins_them(s3: str, tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "features"))
    program = ("-c", FIRST_WAITS.format(folder=str(tmp_path)))
    with head_node(cpus=1) as small:
        few = ("--patches-per-batch", "2")  # so that slides are left for the second
        encoding = Driver(small, "encode", store.uri, "--workers", "3", *few, program=program)
        line = encoding.read(lambda line: line.startswith(("encoding", "milcore:")))
        assert line == "encoding with 1 workers of 1 CPUs; 2 more join as their nodes come"
        with worker_node(small.gcs):
            assert encoding.end() == 0, encoding.lines
    assert "a node has come: 2 of 3 workers encode" in encoding.lines, "that of the third never came"
    assert all(store.slide(name).has_features("efficientnet_lite0") for name in store.slide_ids())


def test_a_cluster_without_room_is_named_with_the_arithmetic(
    local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    context = contextvars.copy_context()
    context.run(set_scale_up_timeout, 1.0)
    with pytest.raises(ClusterError, match=r"workers: expected at most \d+ of 1 CPU each, got 1000, .* grow in 1 s"):
        context.run(wait_for_workers, OTHER, 1000, {"CPU": 1.0})
    assert "waiting for room for 1000 workers" in capfd.readouterr().err


def test_a_cluster_of_this_process_does_not_grow_and_is_not_waited_for(
    local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClusterError, match=r"at most 0 of 1 CPU, 1 GPU each, got 1; allowed: .* leave out --use-gpu"):
        wait_for_workers(LaunchConfig(), 1, {"CPU": 1.0, "GPU": 1.0})
    assert "waiting" not in capfd.readouterr().err
