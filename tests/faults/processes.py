"""Commands in processes that are forked from one which has imported milcore, and how all of them are killed."""

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest

from milcore.cli.main import main

MARK = "MILCORE_TEST_RUN"
# imports take seconds, which a command that is killed and repeated hundreds of times cannot spend
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["milcore.cli.main", "milcore.cluster.launch", "milcore.evaluation.evaluate", "milcore.evaluation.predict",
     "milcore.evaluation.predict_store",
     "milcore.ingestion.cohort", "milcore.ingestion.imports.import_cohort", "onnxruntime", "s3fs"]
)  # fmt: skip
LONGEST_S = 300.0
_WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


class Child:
    """A command that has begun, in a session of its own.

    Args:
        arguments: of ``milcore``.
        out: local folder; changes of files below it are counted.
        signal_at: number of the change before which the process signals its session; 0 for none.
        number: of that signal.
        environment: variables beside those of this process.

    Attributes:
        log: its output, once it has ended.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        out: str,
        signal_at: int = 0,
        number: signal.Signals = signal.SIGKILL,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._log = tempfile.NamedTemporaryFile(prefix="milcore-faults-")  # noqa: SIM115 - a pipe would fill up and stop it
        self._writes: Synchronized[int] = CONTEXT.Value("i", 0)
        self.log = ""
        surroundings = {**os.environ, **(environment or {}), MARK: self._mark}
        start = (tuple(arguments), surroundings, self._log.name, out, signal_at, number, self._writes)
        self._process = CONTEXT.Process(target=_run, args=start)
        self._began = time.monotonic()
        self._process.start()

    def wait(self, seconds: float = LONGEST_S) -> int | None:
        """Exit code; None where it has not ended after so long."""
        self._process.join(seconds)
        return self._process.exitcode

    def end(self) -> int:
        """Exit code of a command that has to end by itself."""
        code = self.wait()
        self.kill()
        assert code is not None, f"it did not end: {self.log[-3000:]}"
        return code

    def wait_until_stopped(self) -> bool:
        """True once it is stopped by a signal, false where it has ended before."""
        stat = Path(f"/proc/{self._process.pid}/stat")
        while True:
            try:
                if stat.read_text().rpartition(") ")[2][0] == "T":
                    return True
            except OSError:
                return False
            if not self._process.is_alive():
                return False
            time.sleep(0.005)

    def signal(self, number: signal.Signals) -> bool:
        """Signal its session; false, as the answer to a request that is not passed on."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(self._process.pid or 0), number)
        return False

    def kill(self) -> None:
        """Kill it and whatever it has started, and read its output."""
        self.signal(signal.SIGKILL)
        while pids := marked(self._mark):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self._process.join()
        self.log = Path(self._log.name).read_text(errors="replace")
        self._log.close()

    @property
    def writes(self) -> int:
        """Changes of local files so far."""
        return self._writes.value

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began


def has_traceback(log: str) -> bool:
    """True where a command printed a traceback.

    Those of Ray's workers are left out: Ray ends idle ones by SIGTERM, which Python prints where it is in a callback.
    """
    return any("Traceback" in line for line in log.splitlines() if not re.match(r"(\x1b\[\d+m)?\(\w+ pid=", line))


def marked(mark: str, title: str = "") -> list[int]:
    """Ids of the processes that were started with a mark in their environment and whose command line begins so."""
    ids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                begins = (entry / "cmdline").read_bytes().startswith(title.encode())
                ours = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
                lives = (entry / "stat").read_text().rpartition(") ")[2][0] != "Z"
            except OSError:
                continue
            if begins and ours and lives:
                ids.append(int(entry.name))
    return ids


def succeed(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command to its end."""
    child = Child(arguments, "", environment=environment)
    if child.end():
        pytest.fail(f"milcore {' '.join(arguments)}: {child.log[-3000:]}")


def _run(  # what a process begins with
    arguments: tuple[str, ...],
    environment: dict[str, str],
    log: str,
    out: str,
    signal_at: int,
    number: signal.Signals,
    writes: "Synchronized[int]",
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if out:
        sys.addaudithook(functools.partial(_count, out, signal_at, number, writes))
    sys.argv = ["milcore", *arguments]
    main()


def _count(
    out: str,
    signal_at: int,
    number: signal.Signals,
    writes: "Synchronized[int]",
    event: str,
    details: tuple[object, ...],
) -> None:
    """Count a change of a file below a folder before it is made; signal the session before one of them."""
    if event == "open":
        is_write = bool(int(str(details[2] or 0)) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        is_write = event in _WRITES
    if not is_write or not isinstance(details[0], (str, os.PathLike)):
        return
    path = os.fspath(details[0])
    if isinstance(path, str) and (path.startswith(out) or not path.startswith("/")):  # rmtree removes by name alone
        with writes.get_lock():
            writes.value += 1
            is_here = writes.value == signal_at
        if is_here:
            os.killpg(0, number)
