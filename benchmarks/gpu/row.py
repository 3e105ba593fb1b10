"""Row of the tables: a figure beside its goal."""

from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """A figure, and its goal where there is one.

    Args:
        part: of the benchmark.
        case: that is measured.
        figure: what was measured, with its unit; empty where it was not.
        goal: of the figure, as a text.
        reached: None without a goal, or where nothing was measured.
        note: why it was not measured, or what bounds it.
    """

    part: str
    case: str
    figure: str
    goal: str = ""
    reached: bool | None = None
    note: str = ""


def at_most(part: str, case: str, values: Sequence[tuple[str, float, float]]) -> Row:
    """Row of figures with bounds: by name the figure and the most it may be."""
    return Row(
        part,
        case,
        ", ".join(f"{name} {value:.1e}" for name, value, _ in values),
        ", ".join(f"{name} <= {bound:.0e}" for name, _, bound in values),
        all(value <= bound for _, value, bound in values),
    )


def at_least(part: str, case: str, value: float, goal: float, form: str = "{:.2f}") -> Row:
    """Row of a figure with the least that is wanted."""
    return Row(part, case, form.format(value), f">= {form.format(goal)}", value >= goal)


def not_run(part: str, case: str, why: str) -> Row:
    """Row of what could not be measured here."""
    return Row(part, case, "", note=f"not run: {why}")


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| part | case | figure | goal | reached | note |", "|---|---|---|---|---|---|"]
    words = {True: "yes", False: "no", None: ""}
    lines += [
        f"| {row.part} | {row.case} | {row.figure} | {row.goal} | {words[row.reached]} | {row.note} |" for row in rows
    ]
    return "\n".join(lines)
