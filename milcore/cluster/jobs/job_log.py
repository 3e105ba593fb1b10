"""Log of a job: milcore's lines are shown, all lines are kept.

They are kept in the folder that the step works on. What Ray prints besides, such as its banner, its tracebacks and the
output of its nodes, is nowhere else.
"""

import re
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

    Args:
        uri: of the kept log; None keeps none.
    """

    def __init__(self, uri: str | None) -> None:
        self._uri = uri
        self._lines: list[str] = []
        self.is_kept = True
        self.last_line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    def add(self, text: str) -> None:
        """Keep a line, and show it if milcore wrote it."""
        line = redact(plain(text))
        self._lines.append(line)
        own = OWN_LINE.fullmatch(line)
        if own is not None:
            log_line(own[1])
        if line.strip():
            self.last_line = own[1] if own is not None else line.strip()

    def _write(self) -> None:
        """Write all lines; storage that fails costs the log, and not the step."""
        if self._uri is None or not self._lines:
            return
        try:
            storage.write_bytes(self._uri, "".join(f"{line}\n" for line in self._lines).encode(errors="replace"))
        except storage.IO_ERRORS as error:
            self.is_kept = False
            log_line(f"the job's log is not kept: {error}")
        else:
            log_line(f"all {len(self._lines)} lines of the job's log: {self._uri}")
