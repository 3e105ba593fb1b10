"""Failures of a pipeline's steps, each kept in the folder that it works on.

A line stays until the same step has succeeded, or the run has ended.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from milcore.runtime import storage
from milcore.runtime.command import Termination, error_line
from milcore.runtime.progress import log_line
from milcore.runtime.redaction import plain, redact
from milcore.runtime.step_retry import SCHEDULER_RETRIES

# the pipeline's run; outside a cluster one at a time works on a folder
RUN_ID, HERE = "PIPELINE_RUN_ID", "local"


class StepFailure(NamedTuple):
    """Failure of a step.

    Args:
        step: its name.
        line: its error.
        exit_code: of its process; 128 + signal where it was stopped.
        time_s: when, in seconds since 1970.
        attempts_left: of the scheduler, which tries the step again.
    """

    step: str
    line: str
    exit_code: int
    time_s: float
    attempts_left: int = 0

    @property
    def is_stop(self) -> bool:
        """True where a signal has stopped the step."""
        return self.exit_code > 128


@contextlib.contextmanager
def kept_failure(step: str, folder_uri: str) -> Iterator[None]:
    """Keep the line of an error that ends a step.

    That of an attempt before is removed where the step succeeds.
    """
    left = _count_attempt(step, folder_uri)
    try:
        yield
    except Termination as ended:
        _keep(folder_uri, StepFailure(step, f"{step} was stopped", 128 + ended.signum, time.time(), left))
        raise
    except Exception as error:
        line, exit_code = error_line(error) or (f"{type(error).__name__}: {' '.join(str(error).split())}", 1)
        _keep(folder_uri, StepFailure(step, line, exit_code, time.time(), left))
        raise
    with contextlib.suppress(*storage.IO_ERRORS):
        storage.remove(_uri(folder_uri, step))


def _count_attempt(step: str, folder_uri: str) -> int:
    """Attempts that the scheduler makes after this one.

    Each is counted as it begins, since one that is killed leaves no line.
    """
    retries = int(os.environ.get(SCHEDULER_RETRIES) or 0)
    if not retries:
        return 0
    begun = StepFailure(step, "", 1, time.time(), retries)
    with contextlib.suppress(*storage.IO_ERRORS):
        earlier = StepFailure(**storage.read_json(_uri(folder_uri, step)))
        begun = earlier._replace(attempts_left=max(0, earlier.attempts_left - 1))
    _keep(folder_uri, begun)
    return begun.attempts_left


def read_failures(folder_uris: Sequence[str], run_id: str | None = None) -> list[StepFailure]:
    """Failures of a run, the first one first.

    Args:
        folder_uris: store, run, or whatever its steps were given.
        run_id: of the run; None: of this process.
    """
    failures: list[StepFailure] = []
    for folder in _folders(folder_uris, run_id):
        with contextlib.suppress(*storage.IO_ERRORS):  # the one that cannot be read may be what the run failed for
            failures += [StepFailure(**storage.read_json(storage.join(folder, name))) for name in _names(folder)]
    # a step without a line has only begun
    return sorted((failure for failure in failures if failure.line), key=lambda failure: failure.time_s)


def remove_failures(folder_uris: Sequence[str]) -> None:
    """Remove the lines of this process's run, once they are told elsewhere."""
    for folder in _folders(folder_uris, None):
        with contextlib.suppress(*storage.IO_ERRORS):
            if _names(folder):
                storage.remove_folder(folder)


def final_status(status: Mapping[str, object], failures: Sequence[StepFailure]) -> dict[str, object]:
    """State of an ended run, with the first failure.

    Kubeflow says RUNNING of steps that were terminated: none of them ends by itself. Nor does a run in the wait before
    a step's next attempt.

    Args:
        status: ``state`` and ``error`` as the scheduler has them.
        failures: lines of the steps, the first one first.
    """
    state = status["state"]
    if state == "SUCCEEDED":
        return {**status}
    first = next((failure for failure in failures if not failure.is_stop and not failure.attempts_left), None)
    if first is not None:
        step = {"step": first.step, "exit_code": first.exit_code}
        return {**status, "state": "FAILED", "error": first.line, **step}
    if failures or state not in {"FAILED", "ERROR"}:
        stop = {"step": failures[0].step} if failures else {}
        before = next((f"; before that: {failure.line}" for failure in failures if not failure.is_stop), "")
        error = (
            status["error"] or f"no step has failed: the run was terminated, or a pod was killed (memory, node){before}"
        )
        return {**status, "state": "TERMINATED", "error": error, **stop}
    return {**status}


def _keep(folder_uri: str, failure: StepFailure) -> None:
    try:
        line = redact(plain(failure.line))  # it may quote a storage's answer, and ends in status.json
        storage.write_json(_uri(folder_uri, failure.step), failure._replace(line=line)._asdict())
    except storage.IO_ERRORS as error:  # it may be what the step has failed for
        log_line(f"{failure.step}: its line is not kept in {folder_uri}: {error}")


def _folders(folder_uris: Sequence[str], run_id: str | None) -> list[str]:
    name = run_id or os.environ.get(RUN_ID) or HERE
    return [storage.join(storage.absolute(uri), "failures", name) for uri in folder_uris]


def _names(folder_uri: str) -> list[str]:
    return [name for name in storage.names(folder_uri) if name.endswith(".json")]


def _uri(folder_uri: str, step: str) -> str:
    (folder,) = _folders([folder_uri], None)
    return storage.join(folder, f"{step.replace('/', '-').replace(' ', '-')}.json")
