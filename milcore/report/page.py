"""Renders ``ReportData`` as one HTML file and as a model card. Style, script and pictures are inside the file."""

import math
from collections.abc import Iterable
from importlib import resources
from typing import Any

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from milcore.metrics import NO_VALIDATION, Estimate, Validation
from milcore.report.charts import Axes, Point, Series, chart, interval_bar, steps
from milcore.report.data import ReportData, SlideView
from milcore.report.pictures import data_uri, scale_bar

DASH = "\N{EN DASH}"
UNIT = (0.0, 1.0)
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
HEADLINE = (
    ("auroc", "AUROC", "chance that a positive slide scores above a negative one"),
    ("localisation_auroc", "Localisation AUROC", "attention against the annotation, inside positive slides"),
    ("sensitivity", "Sensitivity", "positive slides called positive"),
    ("specificity", "Specificity", "negative slides called negative"),
    ("balanced_accuracy", "Balanced accuracy", "mean of sensitivity and specificity"),
    ("auprc", "AUPRC", "average precision over all thresholds"),
    ("f1", "F1", "harmonic mean of precision and sensitivity"),
    ("accuracy", "Accuracy", "slides called right"),
)


def render(data: ReportData) -> str:
    """The report as HTML: no request leaves it, and it reads in print and without script."""
    return _environment().get_template("report.html.j2").render(_view(data))


def model_card(data: ReportData) -> str:
    """The model card as Markdown."""
    return _environment().get_template("MODEL_CARD.md.j2").render(_view(data))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("milcore", "report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "interval": interval,
        "interval_bar": interval_bar,
        "uri": data_uri,
        "cell": _cell,
        "percent": lambda share: f"{100 * share:.0f} %",
    }
    return environment


def number(value: float | None) -> str:
    """Three decimals, or a dash where there is no value."""
    return DASH if value is None or math.isnan(value) else f"{value:.3f}"


def interval(estimate: Estimate) -> str:
    """Low and high end, or nothing where there is no interval."""
    return "" if math.isnan(estimate.low) else f"{estimate.low:.2f} {DASH} {estimate.high:.2f}"


def _view(data: ReportData) -> dict[str, Any]:
    test = next((count for count in data.counts if count.split == "test"), None)
    return {
        "data": data,
        "classes": ("negative", "positive") if data.classes == ("0", "1") else data.classes,
        "test": test,
        "style": _asset("report.css"),
        "script": _asset("report.js"),
        "headline": [(name, title, note, data.metrics[name]) for name, title, note in HEADLINE],
        "charts": _charts(data),
        "slides": sorted(data.slides, key=lambda slide: (-slide.error, slide.slide_id)),
        "called": lambda slide: int(slide.probability >= data.threshold.value),
        "scale": _scale,
        "trials": None if data.trials is None else _trials(data.trials),
        "perfect": data.metrics["auroc"].low == data.metrics["auroc"].high == 1.0,
    }


def _asset(name: str) -> Markup:
    """A file of this package that goes into the page as it is."""
    return Markup(resources.files("milcore.report").joinpath(name).read_text("utf-8"))  # noqa: S704 - our own file


def _charts(data: ReportData) -> list[tuple[str, str, Markup]]:
    """(title, caption, picture) of every chart that has something to show."""
    charts = [(title, caption, _training(data.history, name)) for title, name, caption in _TRAINING if _has(data, name)]
    if data.reliability:
        charts.insert(0, ("Calibration", _CALIBRATION, _calibration(data)))
    if data.roc:
        charts.insert(0, ("ROC on the test split", "Dashed: a model without skill.", _roc(data)))
    return charts


_TRAINING = (
    ("Loss while training", "loss", "Validation AUROC, then loss, chose the epoch."),
    ("AUROC while training", "auroc", "Of few validation slides, so it moves in steps."),
)
_CALIBRATION = "Mean probability against the share that was positive, test slides in five bins; area = slides."


def _has(data: ReportData, metric: str) -> bool:
    return metric in data.history["metric"].to_pylist()


def _roc(data: ReportData) -> Markup:
    axes = Axes("false positive rate", "true positive rate", UNIT, UNIT, QUARTERS, QUARTERS, diagonal=True)
    area = [*data.roc, (1.0, 0.0), (0.0, 0.0)]
    words = f"ROC curve of the test split, AUROC {number(data.metrics['auroc'].value)}"
    return chart(axes, [Series("area", "area", area), Series("test", "line-model", data.roc)], words)


def _calibration(data: ReportData) -> Markup:
    axes = Axes("mean probability", "share positive", UNIT, UNIT, QUARTERS, QUARTERS, diagonal=True)
    most = max(count for _, _, count in data.reliability)
    radii = tuple(4 + 8 * math.sqrt(count / most) for _, _, count in data.reliability)
    points = [(probability, share) for probability, share, _ in data.reliability]
    words = "Calibration: " + "; ".join(f"at {p:.2f} {s:.2f} positive, {n} slides" for p, s, n in data.reliability)
    return chart(axes, [Series("test", "dot-model", points, radii)], words)


def _training(history: pa.Table, metric: str) -> Markup:
    rows = [row for row in history.to_pylist() if row["metric"] == metric and math.isfinite(row["value"])]
    lines = {split: sorted(_points(rows, split)) for split in ("train", "val")}
    last = max((row["epoch"] for row in rows), default=1) or 1
    top = 1.0 if metric == "auroc" else max((row["value"] for row in rows), default=1.0) * 1.05 or 1.0
    axes = Axes("epoch", metric, (0.0, float(last)), (0.0, top), steps(last, 5), steps(top, 5), diagonal=False)
    series = [Series(split, f"line-{split}", points) for split, points in lines.items() if points]
    words = f"{metric} by epoch: " + "; ".join(f"{s.name} ends at {s.points[-1][1]:.3f}" for s in series)
    return chart(axes, series, words)


def _points(rows: Iterable[dict[str, Any]], split: str) -> list[Point]:
    return [(float(row["epoch"]), float(row["value"])) for row in rows if row["split"] == split]


def _trials(table: pa.Table) -> tuple[list[str], list[dict[str, Any]], int]:
    """Columns that say something, rows, and the one that ranks first on validation: the sweep's choice."""
    names = [str(name) for name in table.column_names if table[name].null_count < len(table)]
    rows = table.to_pylist()
    said = [Validation(row["val_loss"], row["val_auroc"]) if row["state"] == "ok" else NO_VALIDATION for row in rows]
    ranks = [validation.rank for validation in said]
    return names, rows, ranks.index(min(ranks))


def _cell(value: object) -> str:
    if value is None:
        return DASH
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _scale(slide: SlideView) -> tuple[float, str] | None:
    return None if slide.mpp is None or slide.size_level0 is None else scale_bar(slide.size_level0[0], slide.mpp)
