"""The fault matrix: whatever is killed or breaks, the run ends with the weights of the undisturbed one."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from milcore.runtime import storage
from tests.faults.conftest import SWEEP, Training, kill, prepared, prepared_sweep
from tests.faults.proxy import FaultyProxy
from tests.ray_node import head_node, worker_node

HERE = ("--workers", "2", "--ray-address", "local")
WORKER = "ray::RayTrainWorker"
Disturbed = Callable[..., Training]
Check = Callable[[str], None]


def test_a_worker_is_killed(disturbed: Disturbed, tmp_path: Path, as_undisturbed: Check) -> None:
    training = disturbed(prepared(str(tmp_path)), *HERE)
    driver = training.start()
    training.wait_until(training.has_checkpoint, driver)
    kill(training.processes(WORKER)[-1])
    training.end(driver)
    as_undisturbed(training.run_uri)


def test_the_driver_is_killed_and_started_again(
    disturbed: Disturbed, s3: str, tmp_path: Path, as_undisturbed: Check
) -> None:
    training = disturbed(prepared(storage.join(s3, tmp_path.name)), *HERE)
    driver = training.start()
    training.wait_until(training.has_checkpoint, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not storage.exists(storage.join(training.run_uri, "model.safetensors"))
    training.end(training.start())
    as_undisturbed(training.run_uri)


def test_a_second_driver_is_refused_and_a_terminated_one_keeps_no_lease(
    disturbed: Disturbed, tmp_path: Path, as_undisturbed: Check
) -> None:
    run = prepared(str(tmp_path))
    training = disturbed(run, *HERE)
    first = training.start()
    training.wait_until(training.has_checkpoint, first)
    running = training.processes("")
    for pid in running:
        os.kill(pid, signal.SIGSTOP)
    assert training.start().wait(timeout=300) == 1
    for pid in running:
        os.kill(pid, signal.SIGCONT)
    assert f"milcore: the run at {run} is being worked on by another process (host " in training.log
    first.terminate()
    first.wait(timeout=300)
    assert [name for name in storage.names(run) if name.startswith("lease")] == []
    training.end(training.start())
    as_undisturbed(run)


def test_a_node_is_lost(disturbed: Disturbed, tmp_path: Path, as_undisturbed: Check) -> None:
    """Three nodes of one CPU; two hold a worker each, and one of those goes."""
    with contextlib.ExitStack() as nodes:
        address = nodes.enter_context(head_node(cpus=0)).gcs
        raylets = [nodes.enter_context(worker_node(address)) for _ in range(3)]
        training = disturbed(prepared(str(tmp_path)), "--workers", "2", "--ray-address", address)
        driver = training.start()
        training.wait_until(training.has_checkpoint, driver)
        busy = next(raylet for raylet in raylets if WORKER.encode() in titles_in_session(raylet.pid))
        os.killpg(busy.pid, signal.SIGKILL)
        training.end(driver)
    as_undisturbed(training.run_uri)


def titles_in_session(session: int) -> bytes:
    """The command lines of all processes of a session."""
    titles = b""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == session:
                    titles += (entry / "cmdline").read_bytes()
    return titles


def test_s3_answers_500_now_and_then_and_then_always(
    disturbed: Disturbed, faulty_s3: FaultyProxy, s3: str, tmp_path: Path, as_undisturbed: Check
) -> None:
    """Every tenth request fails from the beginning, and for five seconds in the middle all of them do."""
    training = disturbed(prepared(storage.join(s3, tmp_path.name)), *HERE, AWS_ENDPOINT_URL=faulty_s3.url)
    faulty_s3.every = 10
    driver = training.start()
    training.wait_until(training.has_checkpoint, driver)
    faulty_s3.every = 1
    time.sleep(5.0)
    faulty_s3.every = 10
    training.end(driver)
    assert faulty_s3.failed > 20
    as_undisturbed(training.run_uri)


def test_s3_hangs_for_a_while(
    disturbed: Disturbed, faulty_s3: FaultyProxy, s3: str, tmp_path: Path, as_undisturbed: Check
) -> None:
    training = disturbed(prepared(storage.join(s3, tmp_path.name)), *HERE, AWS_ENDPOINT_URL=faulty_s3.url)
    driver = training.start()
    training.wait_until(training.has_checkpoint, driver)
    faulty_s3.stall_s = 10.0
    training.wait_until(lambda: faulty_s3.stalled > 0, driver)
    time.sleep(10.0)
    faulty_s3.stall_s = 0.0
    training.end(driver)
    as_undisturbed(training.run_uri)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_disk_of_the_checkpoints_is_full(
    workers: int, disturbed: Disturbed, tmp_path: Path, as_undisturbed: Check
) -> None:
    """A disk for about one checkpoint. Alone the run ends without any other; under Ray, whose own state lies there too,
    it goes on when there is room."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    run = prepared(str(tmp_path))
    place = Path(run, "checkpoints")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)], check=True)
    try:
        training = disturbed(run, "--workers", str(workers), "--ray-address", "local")
        driver = training.start()
        training.wait_until(lambda: "No space left on device" in training.log, driver)
        if workers:
            subprocess.run(["mount", "-o", "remount,size=32m", str(place)], check=True)
        assert driver.wait(timeout=600) == 0, training.log[-3000:]
        as_undisturbed(run)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_sweep_is_killed_and_loses_no_finished_trial(s3: str, tmp_path: Path) -> None:
    """Twelve trials, two at a time; killed at the moment in which the fourth is told to have ended."""
    out = prepared_sweep(storage.join(s3, tmp_path.name))
    command = [sys.executable, "-m", "milcore.cluster", "tune", out, "--workers", "2", "--ray-address", "local"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as driver:
        assert driver.stderr is not None
        fourth = next((line for line in driver.stderr if line.startswith("4/12 trials")), None)
        os.killpg(driver.pid, signal.SIGKILL)
    assert fourth is not None
    finished = storage.names(storage.join(out, "finished"))
    before = {int(Path(name).stem): storage.read_json(storage.join(out, "finished", name)) for name in finished}
    assert 4 <= len(before) < 12
    again = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
    rows = storage.read_table(storage.join(out, "trials.parquet")).to_pylist()
    assert [(row["trial"], row["state"]) for row in rows] == [(trial, "ok") for trial in range(12)]
    assert {row["pooling"] for row in rows} == set(SWEEP.poolings)
    for trial, figures in before.items():
        assert {name: rows[trial][name] for name in ("val_loss", "val_auroc", "epochs")}.items() <= figures.items()
    lines = re.findall(r"^\d+/12 trials: .*", again.stderr, re.MULTILINE)
    assert sum("trained before" not in line for line in lines) == 12 - len(before)
