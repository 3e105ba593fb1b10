"""Log of a job: milcore's lines are shown, all lines are kept.

They are kept in the folder that the step works on. What Ray prints besides, such as its banner, its tracebacks and the
output of its nodes, is nowhere else.
"""

import contextlib
import re
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from milcore.runtime import storage
from milcore.runtime.progress import PROGRAM, log_line
from milcore.runtime.redaction import plain, redact

LOGS = "logs"
# a line of the driver, or of a worker by way of Ray, which names the worker
OWN_LINE = re.compile(rf"(?:\([^()]*pid=[^()]*\) )?{PROGRAM}: (.*)")


def log_uri(folder_uri: str, step: str, attempt: int | str) -> str:
    """URI of an attempt's log in the folder that its step works on."""
    return storage.join(folder_uri, LOGS, f"{step}-r{attempt}.log")


def logged_attempts(folder_uri: str | None, step: str) -> list[int]:
    """Attempts at a step whose logs a folder keeps."""
    try:
        names = storage.names(storage.join(folder_uri, LOGS)) if folder_uri else []
    except storage.IO_ERRORS:
        return []
    matches = (re.fullmatch(rf"{re.escape(step)}-r(\d+)\.log", name) for name in names)
    return [int(match[1]) for match in matches if match]


class JobLog:
    """Log of one attempt, written when its context ends.

    Until then its lines lie in a temporary file, since nobody limits how many there are.

    Args:
        uri: of the kept log; None keeps none.
    """

    def __init__(self, uri: str | None) -> None:
        self._uri = uri
        self._lines = 0
        self._file = None if uri is None else tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by __exit__
        self.is_kept = True
        self.last_line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError), self._file:  # closing writes what a full disk has refused once more
                self._write(self._file)

    def add(self, text: str) -> None:
        """Keep a line, and show it if milcore wrote it."""
        line = redact(plain(text))
        self._keep(line)
        own = OWN_LINE.fullmatch(line)
        if own is not None:
            log_line(own[1])
        if line.strip():
            self.last_line = own[1] if own is not None else line.strip()

    def _keep(self, line: str) -> None:
        """Add a line; a full disk costs the log, and not the step."""
        if self._file is None or not self.is_kept:
            return
        try:
            self._file.write(f"{line}\n")
        except OSError as error:
            self._lose(error)
        else:
            self._lines += 1

    def _write(self, file: "tempfile._TemporaryFileWrapper[str]") -> None:
        """Write all lines; storage that fails costs the log, and not the step."""
        if self._uri is None or not self._lines or not self.is_kept:
            return
        try:
            file.flush()
            storage.upload(Path(file.name), self._uri)
        except storage.IO_ERRORS as error:
            self._lose(error)
        else:
            log_line(f"all {self._lines} lines of the job's log: {self._uri}")

    def _lose(self, error: Exception) -> None:
        self.is_kept = False
        log_line(f"the job's log is not kept: {error}")
