"""Rows of the benchmark as tables of Markdown."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
HEAD = (
    "| case | where | step | seconds | processor, s | first step, s | epochs, s | requests | at once | per slide, ms "
    "| requests per slide | peak, MB | load |\n|---|---|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|"
)


def table(rows: Sequence[Row]) -> str:
    """A line per row, by case, step and place."""
    ordered = sorted(rows, key=lambda row: (_slides(row), row["step"], row["where"] != "local", row["where"]))
    return "\n".join([HEAD, *map(_line, ordered)])


def _slides(row: Row) -> int:
    return int(row["case"].split("x")[0])


def _line(row: Row) -> str:
    slides = row.get("slides_read", _slides(row))
    epochs = " / ".join(f"{row[name]:.1f}" for name in ("epoch1_s", "epoch2_s") if name in row)
    requests = row.get("requests")
    cells = [
        row["case"],
        row["where"],
        row["step"],
        f"{row['seconds']:.1f}" + (f" ({slides} slides)" if "slides_read" in row else ""),
        f"{row['cpu_s']:.1f}" if "cpu_s" in row else "",
        f"{row['first_step_s']:.1f}" if "first_step_s" in row else "",
        epochs,
        "" if requests is None else f"{requests:,}",
        str(row.get("most_at_once", "")),
        f"{1000 * row['seconds'] / slides:.2f}",
        "" if requests is None else f"{requests / slides:.2f}",
        f"{row['peak_mb']:,.0f}",
        f"{row['load']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"
