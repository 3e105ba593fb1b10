"""SIGTERM and Ctrl-C end a command with one line and a code of its own, and no process of it is left."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from milcore.slides.write_pyramid import write_pyramid

MARK = "MILCORE_TEST_SIGNALS"
MILCORE = str(Path(sys.executable).with_name("milcore"))
SECONDS_UNTIL_ALL_HAVE_ENDED = 10.0


class Command:
    """A command in a session of its own, whose processes are marked by a variable of their environment."""

    def __init__(self, *words: str, folder: Path) -> None:
        self.mark = f"{MARK}={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words, env=os.environ | {name: value}, start_new_session=True, stdout=log, stderr=log
            )

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that happens while the command runs."""
        deadline = time.monotonic() + 120.0
        while not happened():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def send(self, signum: int, *, group: bool = False) -> None:
        """Send a signal to the command alone, or, as a terminal does, to its group."""
        (os.killpg if group else os.kill)(self.process.pid, signum)

    def processes(self) -> list[str]:
        """Titles of the processes of the command that live."""
        titles = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if self.mark.encode() in (entry / "environ").read_bytes():
                        titles.append((entry / "cmdline").read_text().replace("\0", " "))
                except OSError:
                    continue
        return titles

    def check_none_is_left(self) -> None:
        """Every process has ended, or ends in a moment."""
        deadline = time.monotonic() + SECONDS_UNTIL_ALL_HAVE_ENDED
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.processes() == []

    def check_end(self, signum: signal.Signals, program: str = "milcore") -> None:
        """It ended by the signal, with the one line as its last."""
        assert self.process.wait(60) == 128 + signum, self.log.read_text()[-3000:]
        said = self.log.read_text()
        assert "Traceback" not in said
        assert said.splitlines()[-1] == (
            f"{program}: stopped by {signum.name}; the same command goes on from what is done"
        )
        assert self.processes() == []


def in_work(step: str, tmp_path: Path) -> Command:
    """A command of two processes, in the middle of its work."""
    out = tmp_path / "out"
    if step == "synth":
        command = Command(MILCORE, "synth", str(out), "--slides", "500", "--workers", "2", folder=tmp_path)
        command.wait_until(lambda: any(out.rglob("*.tiff")))
        return command
    y, x = np.mgrid[:900, :900]
    pixels = np.stack([200 - x % 60, 120 + y % 40, np.full_like(x, 170)], -1).astype(np.uint8)
    write_pyramid(tmp_path / "a.tiff", pixels, 0.5, 1)
    rows = [f"s{k},a.tiff,{k % 2}" for k in range(2000)]
    (tmp_path / "manifest.csv").write_text("\n".join(["slide_id,uri,label", *rows]))
    options = ("--patch-size", "64", "--workers", "2")
    command = Command(MILCORE, "ingest", str(tmp_path / "manifest.csv"), str(out), *options, folder=tmp_path)
    command.wait_until(lambda: len(list(out.glob("sources/*.json"))) > 1)
    return command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "signum", "group"),
    [("ingest", signal.SIGTERM, False), ("ingest", signal.SIGINT, True), ("synth", signal.SIGINT, False)],
)
def test_a_signal_ends_the_workers_too(step: str, signum: signal.Signals, group: bool, tmp_path: Path) -> None:
    command = in_work(step, tmp_path)
    assert len(command.processes()) >= 3
    command.send(signum, group=group)
    command.check_end(signum)


@pytest.mark.slow
def test_workers_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    command = in_work("ingest", tmp_path)
    assert len(command.processes()) >= 3
    command.send(signal.SIGKILL)
    assert command.process.wait(60) == -signal.SIGKILL
    command.check_none_is_left()


PROGRAM = """
import subprocess, sys, threading
from milcore.runtime.command import exit_codes
with exit_codes():
    subprocess.Popen(["sh", "-c", "sleep 1000 & exec sleep 0.2"])  # its child is an orphan soon
    print("begun", flush=True)
    try:
        threading.Event().wait()
    except BaseException:
        raise {error} from None
"""


@pytest.mark.parametrize("error", ["SystemExit(1)", "RuntimeError('of foreign code')", "KeyboardInterrupt"])
def test_the_code_is_the_signal_s_whatever_others_make_of_it(error: str, tmp_path: Path) -> None:
    command = Command(sys.executable, "-c", PROGRAM.replace("{error}", error), folder=tmp_path)
    command.wait_until(lambda: "begun" in command.log.read_text())
    time.sleep(0.5)
    assert any("sleep" in title for title in command.processes())
    command.send(signal.SIGTERM)
    command.check_end(signal.SIGTERM)


IN_A_GENERATOR = """
import threading, time
from milcore.runtime.command import exit_codes
from milcore.runtime.processes import map_in_processes
def main():
    results = map_in_processes(time.sleep, [0.0, 1000.0], 2, print)
    for _ in results:
        print("begun", flush=True)
        threading.Event().wait()
with exit_codes():
    main()
"""


def test_a_signal_between_two_results_logs_nothing_but_its_line(tmp_path: Path) -> None:
    command = Command(sys.executable, "-c", IN_A_GENERATOR, folder=tmp_path)
    command.wait_until(lambda: "begun" in command.log.read_text())
    command.send(signal.SIGINT)
    command.check_end(signal.SIGINT)
