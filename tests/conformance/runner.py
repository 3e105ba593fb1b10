"""Runs cases one after the other; each becomes a row."""

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kfp_server_api import ApiException as KubeflowException
from kubernetes.client.exceptions import ApiException

from milcore.errors import MILError
from milcore.runtime.redaction import redact
from tests.conformance.case import Case, Clock, Place, UnexpectedError
from tests.conformance.report import Row

SHOWN = 400  # characters of what was seen
ABSENT = {"cluster": "no cluster", "kubeflow": "no --kfp HOST"}


def run_cases(
    cases: Sequence[Case], places: Mapping[Place, Any], announce: Callable[[Case], object] = lambda _: None
) -> Iterator[Row]:
    """Run the cases in their order.

    Args:
        cases: the table.
        places: what is there to run them on.
        announce: gets each case that begins.
    """
    states: dict[str, str] = {}
    for case in cases:
        row = absence(case, places, states)
        if row is None:
            announce(case)
            row = _run(case, places[case.place])
        states[case.name] = row.state
        yield row


def absence(case: Case, places: Mapping[Place, Any], states: Mapping[str, str]) -> Row | None:
    """The row of a case that cannot run; None where it can."""
    if case.place not in places:
        # without a cluster there is no Kubeflow either
        return not_run(case, ABSENT[case.place if "cluster" in places else "cluster"])
    if states.get(case.after, "passed") != "passed":
        return not_run(case, f"{case.after!r} has not passed")
    return None


def _run(case: Case, place: Any) -> Row:
    clock = Clock()
    try:
        state, seen = "passed", case.way(place, clock)
    except Exception as error:  # noqa: BLE001 - whatever breaks a case is a row, and the next one runs
        state, seen = "failed", error_line(error)
    return Row(case.name, case.expected, state, seen[:SHOWN], case.place, clock.seconds, clock.steps)


def not_run(case: Case, reason: str) -> Row:
    """The row of a case that was not run, which is never one that passed."""
    return Row(case.name, case.expected, "not run", f"not run: {reason}")


def error_line(error: Exception) -> str:
    """The error on a line, without secrets."""
    if isinstance(error, ApiException | KubeflowException):
        text = f"API: {error.status} {error.reason} {error.body or ''}"
    elif isinstance(error, subprocess.CalledProcessError):
        text = f"{error.cmd[0]} ended with code {error.returncode}: {error.stderr or error.stdout}"
    else:
        text = f"{error}" if isinstance(error, UnexpectedError | MILError) else f"{type(error).__name__}: {error}"
    return redact(" ".join(text.split()))
