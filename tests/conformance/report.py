"""The table at the end of a conformance run, and its JSON."""

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

State = Literal["passed", "failed", "not run"]
WIDTHS = (30, 8, 8, 38, 46, 7, 28)
HEADER = ("case", "state", "where", "expected", "seen", "s", "s between steps")


class Row(NamedTuple):
    """A case, and what was seen of it.

    Args:
        case: its name.
        expected: what is seen where all is well.
        state: passed, failed or not run.
        seen: what was seen, or why it was not run.
        where: place it ran in.
        seconds: it took.
        steps: name of each step, and seconds from the one before.
    """

    case: str
    expected: str
    state: State
    seen: str
    where: str = ""
    seconds: float = 0.0
    steps: Sequence[tuple[str, float]] = ()

    def cells(self) -> tuple[str, ...]:
        between = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.steps)
        seconds = f"{self.seconds:.1f}" if self.where else ""
        return (self.case, self.state, self.where, self.expected, self.seen, seconds, between)


def table(rows: Sequence[Row]) -> str:
    """The rows in columns, long texts on several lines."""
    lines = [line for cells in (HEADER, *(row.cells() for row in rows)) for line in _lines(cells)]
    return "\n".join([*lines, "", counts(rows)])


def _lines(cells: Sequence[str]) -> list[str]:
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, WIDTHS, strict=True)]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    return [
        "  ".join(f"{text:{w}}" for text, w in zip(line, WIDTHS, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]


def counts(rows: Sequence[Row]) -> str:
    """How many passed, failed, and were not run."""
    states = Counter(row.state for row in rows)
    return f"{states['passed']} passed, {states['failed']} failed, {states['not run']} not run"


def has_failed(rows: Sequence[Row]) -> bool:
    return any(row.state == "failed" for row in rows)


def write_json(path: Path, rows: Sequence[Row], surroundings: dict[str, str]) -> None:
    """Write the rows, and what they were seen on."""
    values = {
        "ok": not has_failed(rows),
        "counts": Counter(row.state for row in rows),
        "surroundings": surroundings,
        "rows": [{**row._asdict(), "steps": [{"step": name, "seconds": s} for name, s in row.steps]} for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
