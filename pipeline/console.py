"""Console of a pipeline that runs on this machine.

It shows the steps and their progress; everything else is in a log file. kfp's local runner prints its executor's input
and every output around the lines of a step, hundreds for a pipeline. A line that is not known to be the runner's is
shown, so that no error is lost where the runner changes.
"""

import io
import re
import threading
from typing import TextIO

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_RUNNER = re.compile(r"\d\d:\d\d:\d\d\.\d+ - (?P<level>\w+) - (?P<text>.*)")
_BEGINS = re.compile(r"Executing task '(.+)'")
_FAILS = re.compile(r"Task '(.+)' finished with status FAILURE")
_OUTPUTS = re.compile(r"Task '.+' outputs:")
_EXECUTOR = re.compile(r"\[KFP Executor [^\]]* INFO\]")
_JSON = re.compile(r"[{}\[\]\"]")
_RAY_WORKER = re.compile(r"\((?P<actor>\S+ )?pid=\d+[^)]*\) (?P<text>.*)")


class StepConsole(io.TextIOBase):
    """Standard output of the local runner.

    Args:
        console: gets the lines for a person.
        log: gets everything.
    """

    def __init__(self, console: TextIO, log: TextIO) -> None:
        self._console, self._log = console, log
        self._lock = threading.Lock()
        self._step = ""
        # a step of a loop runs in a thread of its own
        self._thread = threading.local()

    def writable(self) -> bool:
        """True: it is written to."""
        return True

    def write(self, text: str) -> int:
        """Log the text, and show its lines for a person once they are whole."""
        *lines, self._thread.begun = (getattr(self._thread, "begun", "") + text).split("\n")
        with self._lock:
            self._log.write(text)
            for line in lines:
                shown = self._line_to_show(_COLOURS.sub("", line).strip())
                if shown:
                    self._console.write(f"{shown}\n")
            self._console.flush()
        return len(text)

    def flush(self) -> None:
        """Flush the log and the console."""
        self._log.flush()
        self._console.flush()

    def _line_to_show(self, line: str) -> str:
        """The line as a person should see it; empty for the runner's."""
        of_runner = _RUNNER.fullmatch(line)
        if of_runner or line.startswith("----"):
            self._thread.in_outputs = bool(of_runner and _OUTPUTS.fullmatch(of_runner["text"]))
            return self._of_runner(of_runner["level"], of_runner["text"]) if of_runner else ""
        if getattr(self._thread, "in_outputs", False) or _EXECUTOR.match(line) or _JSON.match(line):
            return ""
        of_worker = _RAY_WORKER.fullmatch(line)
        if of_worker:  # lines without an actor are Ray's own
            return of_worker["text"] if of_worker["actor"] else ""
        return line

    def _of_runner(self, level: str, text: str) -> str:
        begins, fails = _BEGINS.fullmatch(text), _FAILS.fullmatch(text)
        if begins and begins[1] != self._step:
            self._step = begins[1]
            return f"step {self._step}"
        if fails:
            return f"step {fails[1]} failed"
        return "" if level == "INFO" else text
