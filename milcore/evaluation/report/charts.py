"""Small charts as inline SVG.

They print sharply, need no script and carry a description in words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import shapely
from markupsafe import Markup

from milcore.metrics.classification import Estimate

WIDTH, HEIGHT = 360, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 42
LEGEND_LINE = 17
TOLERANCE = 0.25
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """A line under a CSS class, or points where ``dots`` gives radii in px."""

    name: str
    style: str
    points: list[Point]
    dots: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Axes:
    """Labels, ranges and ticks of a pair of axes.

    ``diagonal`` draws the line of no skill or of perfect calibration.
    """

    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]
    diagonal: bool

    def x(self, value: float) -> float:
        """Horizontal position in the picture, px from the left."""
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Vertical position in the picture, px from the top."""
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


@dataclass(frozen=True, slots=True)
class TickRow:
    """Counts under the ticks of the x axis, such as patients at risk."""

    name: str
    style: str
    counts: tuple[int, ...]


def chart(
    axes: Axes, series: list[Series], description: str, *, legend: bool = False, rows: Sequence[TickRow] = ()
) -> Markup:
    """Lines and points on one pair of axes.

    Args:
        axes: ranges and ticks.
        series: drawn in order.
        description: in words, for readers who cannot see the chart.
        legend: write the names of the lines below the axes, a line each.
        rows: written under the legend, a count at each tick of x.
    """
    named = [line for line in series if not line.style.startswith("band")] if legend else []
    height = HEIGHT + LEGEND_LINE * (len(named) + len(rows) + bool(rows))
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(description)}">',
        *_frame(axes),
        *(part for line in series for part in _draw(axes, line)),
        *_legend(named),
        *_rows(axes, rows, HEIGHT + LEGEND_LINE * len(named)),
        "</svg>",
    ]
    return Markup("".join(parts))  # noqa: S704 - every text in it passed escape


def _frame(axes: Axes) -> list[str]:
    low_x, high_x = axes.x(axes.x_range[0]), axes.x(axes.x_range[1])
    low_y, high_y = axes.y(axes.y_range[0]), axes.y(axes.y_range[1])
    parts = []
    for tick in axes.y_ticks:
        parts.append(f'<line class="grid" x1="{low_x}" x2="{high_x}" y1="{axes.y(tick)}" y2="{axes.y(tick)}"/>')
        parts.append(f'<text class="tick" x="{low_x - 7}" y="{axes.y(tick) + 4}" text-anchor="end">{tick:g}</text>')
    parts += [
        f'<text class="tick" x="{axes.x(tick)}" y="{low_y + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in axes.x_ticks
    ]
    if axes.diagonal:
        parts.append(f'<line class="diagonal" x1="{low_x}" y1="{low_y}" x2="{high_x}" y2="{high_y}"/>')
    parts.append(f'<line class="axis" x1="{low_x}" x2="{high_x}" y1="{low_y}" y2="{low_y}"/>')
    middle_x, middle_y = (low_x + high_x) / 2, (low_y + high_y) / 2
    parts.append(
        f'<text class="label" x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">{escape(axes.x_label)}</text>'
    )
    parts.append(
        f'<text class="label" transform="translate(11 {middle_y}) rotate(-90)" text-anchor="middle">'
        f"{escape(axes.y_label)}</text>"
    )
    return parts


def _legend(series: list[Series]) -> list[str]:
    parts = []
    for k, line in enumerate(series):
        y = HEIGHT + LEGEND_LINE * (k + 0.5)
        parts.append(f'<line class="{escape(line.style)}" x1="{LEFT + 8}" x2="{LEFT + 30}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT + 36}" y="{y + 4}">{escape(line.name)}</text>')
    return parts


def _rows(axes: Axes, rows: Sequence[TickRow], top: float) -> list[str]:
    """Title of the rows, and each row with its mark at the left."""
    parts = [f'<text class="tick" x="{LEFT}" y="{top + 12}">at risk</text>'] if rows else []
    for k, row in enumerate(rows):
        y = top + LEGEND_LINE * (k + 1.5)
        parts.append(f'<line class="{escape(row.style)}" x1="4" x2="26" y1="{y}" y2="{y}"/>')
        parts += [
            f'<text class="tick" x="{axes.x(tick)}" y="{y + 4}" text-anchor="middle">{count}</text>'
            for tick, count in zip(axes.x_ticks, row.counts, strict=True)
        ]
    return parts


def _draw(axes: Axes, series: Series) -> list[str]:
    places = [(axes.x(x), axes.y(y)) for x, y in series.points]
    if series.dots:
        return [
            f'<circle class="{escape(series.style)}" cx="{x}" cy="{y}" r="{radius:.1f}"/>'
            for (x, y), radius in zip(places, series.dots, strict=True)
        ]
    return [f'<polyline class="{escape(series.style)}" points="{" ".join(f"{x},{y}" for x, y in _thin(places))}"/>']


def _thin(places: list[Point]) -> list[Point]:
    """The line without points that it passes within ``TOLERANCE`` px all the same.

    A curve of ten thousand slides has ten thousand points on some hundred px.
    """
    if len(places) < 3:
        return places
    return [(x, y) for x, y in shapely.LineString(places).simplify(TOLERANCE, preserve_topology=False).coords]


def steps(most: float, count: int) -> tuple[float, ...]:
    """Round ticks from 0 to at most ``most``, about ``count`` of them."""
    return ticks(0.0, most, count)


def ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Round ticks from ``low`` to ``high``, about ``count`` of them."""
    smallest = (high - low) / count
    power = 10.0 ** math.floor(math.log10(smallest))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= smallest * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(float(f"{k * step:.10g}") for k in range(first, last + 1))


def interval_bar(estimate: Estimate) -> Markup:
    """Value and interval on a line from 0 to 1, chance (0.5) marked."""
    x = {name: round(4 + 152 * getattr(estimate, name), 1) for name in ("value", "low", "high")}
    return Markup(  # noqa: S704 - numbers only
        '<svg class="interval" viewBox="0 0 160 18" aria-hidden="true">'
        '<line class="grid" x1="4" x2="156" y1="9" y2="9"/>'
        '<line class="chance" x1="80" x2="80" y1="1" y2="17"/>'
        f'<line class="range" x1="{x["low"]}" x2="{x["high"]}" y1="9" y2="9"/>'
        f'<circle class="value" cx="{x["value"]}" cy="9" r="4"/></svg>'
    )
