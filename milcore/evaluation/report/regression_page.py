"""HTML report and model card of a run on regression."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from milcore.evaluation.report import markdown
from milcore.evaluation.report.charts import Axes, Point, Series, chart, ticks
from milcore.evaluation.report.page import DASH, environment, interval, number, page_values, training_chart
from milcore.evaluation.report.regression_contents import RegressionReport
from milcore.metrics.classification import Estimate
from milcore.runtime.progress import format_quantity
from milcore.training.selection import R2

# name, title, note; those of UNITS are in the unit of the column
HEADLINE = (
    ("r2", "R2", "share of the values' variance that is predicted; 0: no better than their mean"),
    ("mae", "Mean absolute error", "of predicted values, in the unit of the column"),
    ("rmse", "Root mean square error", "the same, large errors weighed more"),
    ("pearson", "Pearson's r", "how near predicted values lie to a straight line of the true ones"),
    ("spearman", "Spearman's rho", "how alike their order is"),
    ("bias", "Bias", "mean of predicted less true value"),
    ("lower_limit", "Lower limit of agreement", "bias less 1.96 standard deviations of the differences"),
    ("upper_limit", "Upper limit of agreement", "bias plus 1.96 standard deviations of the differences"),
)
UNITS = {"mae", "rmse", "bias", "lower_limit", "upper_limit"}
DOT_PX = 3.0
# points of a chart; of more bags every so manieth in the order of the file
MOST_POINTS = 3_000
TICKS = 4
# of the range of a chart beyond its outermost points
MARGIN = 0.05


def render_regression(data: RegressionReport) -> str:
    """The report as HTML, which reads in print and without script."""
    return environment().get_template("regression.html.j2").render(_template_values(data))


def regression_model_card(data: RegressionReport) -> str:
    """The model card as Markdown."""
    templates = environment()
    templates.finalize = markdown.text
    return templates.get_template("REGRESSION_MODEL_CARD.md.j2").render(_template_values(data))


def _template_values(data: RegressionReport) -> dict[str, Any]:
    slides = sorted(data.slides, key=lambda slide: (-abs(slide.error), slide.view.slide_id))
    values = data.metrics.overall
    return {
        **page_values(data, slides, [slide.view for slide in slides]),
        "headline": [(name, title, note, values[name]) for name, title, note in HEADLINE],
        "metric_text": metric_text,
        "interval_text": interval_text,
        "quantity": format_quantity,
        "charts": _charts(data),
        "rank_title": R2.title,
        "unit": data.column.replace("_", " "),
    }


def metric_text(name: str, value: float) -> str:
    """Value of a metric: three decimals, or four digits of one with a unit."""
    if math.isnan(value):
        return DASH
    return format_quantity(value) if name in UNITS else number(value)


def interval_text(name: str, estimate: Estimate) -> str:
    """Low and high end of a metric, nothing where there is no interval."""
    if name not in UNITS or math.isnan(estimate.low):
        return interval(estimate)
    return f"{format_quantity(estimate.low)} {DASH} {format_quantity(estimate.high)}"


def _charts(data: RegressionReport) -> list[tuple[str, str, Markup]]:
    """(title, caption, picture) of every chart that has data."""
    charts = []
    places = _places(len(data.test.true))
    if len(places):
        part = "" if len(places) == len(data.test.true) else f" {len(places)} of {len(data.test.true)} {data.bag}s."
        charts = [
            (
                "Predicted against true",
                f"A point is a test {data.bag}. Dashed: no error.{part}",
                _scatter(data, places),
            ),
            ("Bland-Altman", f"{_agreement_text(data)}{part}", _bland_altman(data, places)),
        ]
    names = {"loss": "Loss while training", R2.name: f"{R2.title} while training"}
    present = set(data.history["metric"].to_pylist())
    return charts + [
        (title, "Validation chose the epoch.", training_chart(data.history, name))
        for name, title in names.items()
        if name in present
    ]


def _places(bags: int) -> np.ndarray:
    """Places of the bags that a chart shows."""
    return np.arange(0, bags, max(1, -(-bags // MOST_POINTS)))


def _scatter(data: RegressionReport, places: np.ndarray) -> Markup:
    true, predicted = data.test.true, data.test.predicted
    ends = _range(np.concatenate([true, predicted]))
    marks = ticks(*ends, TICKS)
    axes = Axes("true", "predicted", ends, ends, marks, marks, diagonal=True)
    r2 = number(data.metrics.overall["r2"].value)
    words = f"Predicted against true {data.column} of {len(true)} {data.bag}s, R2 {r2}"
    return chart(axes, [_dots(true[places], predicted[places])], words)


def _bland_altman(data: RegressionReport, places: np.ndarray) -> Markup:
    """Difference over mean of true and predicted value, with bias and limits of agreement."""
    test, overall = data.test, data.metrics.overall
    mean, difference = (test.true + test.predicted) / 2, test.difference
    estimates = {name: overall[name] for name in ("bias", "lower_limit", "upper_limit")}
    levels = [
        value for each in estimates.values() for value in (each.value, each.low, each.high) if math.isfinite(value)
    ]
    x, y = _range(mean), _range(np.concatenate([difference, levels, [0.0]]))
    axes = Axes(
        "mean of true and predicted", "predicted less true", x, y, ticks(*x, TICKS), ticks(*y, TICKS), diagonal=False
    )
    bands = [
        Series("interval", "band", [(x[0], each.low), (x[1], each.low), (x[1], each.high), (x[0], each.high)])
        for each in estimates.values()
        if not math.isnan(each.low)
    ]
    lines = [
        Series(name, "line-model" if name == "bias" else "line-train", [(x[0], each.value), (x[1], each.value)])
        for name, each in estimates.items()
        if not math.isnan(each.value)
    ]
    zero = Series("no difference", "diagonal", [(x[0], 0.0), (x[1], 0.0)])
    words = f"Bland-Altman plot of {len(mean)} {data.bag}s. {_agreement_text(data)}"
    return chart(axes, [*bands, zero, *lines, _dots(mean[places], difference[places])], words)


def _agreement_text(data: RegressionReport) -> str:
    """Bias and limits of agreement in words."""
    values = data.metrics.overall
    bias = f"Solid: bias {metric_text('bias', values['bias'].value)}."
    if math.isnan(values["lower_limit"].value):
        return bias
    low, high = (format_quantity(values[name].value) for name in ("lower_limit", "upper_limit"))
    return f"{bias} Dashed: 95 % limits of agreement {low} to {high}. Shaded: 95 % intervals of the three."


def _dots(x: Float[np.ndarray, " bag"], y: Float[np.ndarray, " bag"]) -> Series:
    points: list[Point] = list(zip(x.tolist(), y.tolist(), strict=True))
    return Series("test", "dot-model", points, (DOT_PX,) * len(points))


def _range(values: Float[np.ndarray, " value"]) -> tuple[float, float]:
    """Ends of an axis that holds the values with a margin."""
    low, high = float(values.min()), float(values.max())
    margin = MARGIN * (high - low) or abs(high) or 1.0
    return low - margin, high + margin
