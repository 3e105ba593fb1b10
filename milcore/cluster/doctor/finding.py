"""Findings of the checks, and the report that holds them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from milcore.runtime import html

State = Literal["ok", "warning", "failure"]


class Finding(NamedTuple):
    """Outcome of one check.

    Args:
        check: its name.
        state: a warning may slow a run or hide a fault; with a failure a run does not work.
        text: the facts.
        remedy: next step of the user; empty where all is well.
        area: part of the surroundings that was checked.
    """

    check: str
    state: State
    text: str
    remedy: str = ""
    area: str = ""


def ok(check: str, text: str) -> Finding:
    """A check that passed."""
    return Finding(check, "ok", text)


def warning(check: str, text: str, remedy: str) -> Finding:
    """A check that a run may survive."""
    return Finding(check, "warning", text, remedy)


def failure(check: str, text: str, remedy: str) -> Finding:
    """A check without which no run works."""
    return Finding(check, "failure", text, remedy)


@dataclass(frozen=True)
class DoctorReport:
    """Outcome of all checks.

    Args:
        findings: in the order of the checks.
    """

    findings: Sequence[Finding]

    @property
    def ok(self) -> bool:
        """True where no check failed."""
        return all(finding.state != "failure" for finding in self.findings)

    @property
    def line(self) -> str:
        """The counts in one line."""
        counts = Counter(finding.state for finding in self.findings)
        states: tuple[State, ...] = ("warning", "failure")
        counts_text = [f"{counts[state]} {state}{'' if counts[state] == 1 else 's'}" for state in states]
        return ", ".join([f"{counts['ok']} ok", *counts_text])

    def as_dict(self) -> dict[str, object]:
        """The report as the command line prints it with ``--json``."""
        return {"ok": self.ok, "findings": [finding._asdict() for finding in self.findings]}

    def __repr__(self) -> str:
        return f"DoctorReport({self.line})"

    def _repr_html_(self) -> str:
        """A table of the findings, for a notebook."""
        header = ["state", "area", "check", "finding", "next step"]
        rows = [(each.state, each.area, each.check, each.text, each.remedy) for each in self.findings]
        return f"{html.line(self.line)}{html.table(header, rows)}"
