"""HTML report and model card from ``ReportData``.

The report is one file; style, script and pictures are inside it.
"""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from milcore.evaluation.report import markdown
from milcore.evaluation.report.charts import Axes, Point, Series, chart, interval_bar, steps, ticks
from milcore.evaluation.report.contents import Curve, FlippingCurves, ReportData, SlideView
from milcore.evaluation.report.pictures import scale_bar
from milcore.evaluation.report.regression_contents import RegressionReport
from milcore.evaluation.report.survival_contents import SurvivalReport
from milcore.metrics.classification import Estimate
from milcore.metrics.curves import Band
from milcore.runtime.html import MOST_ROWS, PAGE_ROWS, asset, data_uri, table_script
from milcore.training.selection import NO_VALIDATION, RANK_METRICS, Validation, metric_name

DASH = "\N{EN DASH}"
UNIT = (0.0, 1.0)
BASE64 = 4 / 3
TAIL = 0.025
SLIDES_NAMED = 20
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
HEADLINE = (
    ("auroc", "AUROC", "chance that a {positive} {bag} scores above a {negative} one"),
    ("localisation_auroc", "Localisation AUROC", "attention against instance labels, inside {positive} slides"),
    ("flipping_area", "Flipping area", "random less most-attended-first removal; 0: attention is noise"),
    ("balanced_accuracy", "Balanced accuracy", "mean over the classes of {bag}s called right"),
    ("sensitivity", "Sensitivity", "{positive} {bag}s called so"),
    ("specificity", "Specificity", "{negative} {bag}s called so"),
    ("auprc", "AUPRC", "average precision over all thresholds"),
    ("f1", "F1", "harmonic mean of precision and sensitivity"),
    ("accuracy", "Accuracy", "{bag}s called right"),
    ("localisation_ap", "Localisation AP", "average precision of attention, inside {positive} slides"),
    ("brier", "Brier score", "mean square of the error of probability; 0 is perfect"),
    ("ece", "ECE", "calibration error: how far probability is from frequency"),
)
MACRO_NOTES = {
    "auroc": "mean over the classes, each against the rest",
    "auprc": "mean over the classes, each against the rest",
    "f1": "mean over the classes",
    "localisation_auroc": "attention against instance labels",
    "localisation_ap": "average precision of attention",
}
TRIAL_TITLES = {
    "val_loss": "validation loss",
    **{f"val_{metric.name}": f"validation {metric.title}" for metric in RANK_METRICS.values()},
    **{f"val_{metric.name}_se": "its standard error" for metric in RANK_METRICS.values()},
}
PER_CLASS = ("auroc", "auprc", "sensitivity", "specificity", "f1")


def render(data: ReportData) -> str:
    """The report as HTML.

    It sends no request, and reads in print and without script.
    """
    return environment().get_template("report.html.j2").render(_template_values(data))


def model_card(data: ReportData) -> str:
    """The model card as Markdown."""
    templates = environment()
    templates.finalize = markdown.text
    return templates.get_template("MODEL_CARD.md.j2").render(_template_values(data))


def environment() -> Environment:
    """Templates of the room, with the filters they use."""
    templates = Environment(
        loader=PackageLoader("milcore", "evaluation/report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "number": number,
        "interval": interval,
        "interval_bar": interval_bar,
        "uri": data_uri,
        "code": markdown.code,
        "cell": _cell,
        "percent": lambda share: f"{100 * share:.0f} %",
    }
    return templates


def number(value: float | None) -> str:
    """Three decimals, or a dash where there is no value."""
    return DASH if value is None or math.isnan(value) else f"{value:z.3f}"


def interval(estimate: Estimate) -> str:
    """Low and high end, or nothing where there is no interval.

    Two decimals, three where two would not tell them apart.
    """
    if math.isnan(estimate.low):
        return ""
    digits = 2 if f"{estimate.low:.2f}" != f"{estimate.high:.2f}" else 3
    return f"{estimate.low:z.{digits}f} {DASH} {estimate.high:z.{digits}f}"


def _template_values(data: ReportData) -> dict[str, Any]:
    classes = ("negative", "positive") if data.classes == ("0", "1") else data.classes
    slides = sorted(data.slides, key=lambda slide: (-slide.error, slide.slide_id))
    return {
        **page_values(data, slides, slides),
        "classes": classes,
        "binary": len(classes) == 2,
        "right": sum(row[k] for k, row in enumerate(data.confusion)),
        "auroc": data.score.overall.get("auroc", data.metrics["auroc"]),
        "headline": _headline(data, classes),
        "intervals": _intervals(data),
        "of_patients": data.of_patients | data.score.of_patients,
        "per_class": [
            (name, [(estimates | score)[metric] for metric in PER_CLASS])
            for name, estimates, score in zip(classes, data.of_class, data.score.of_class, strict=False)
        ],
        "charts": _charts(data),
        "named_not_localised": list(data.not_localised.items())[:SLIDES_NAMED],
        "rank_title": RANK_METRICS["classification"].title,
        "perfect": data.metrics["auroc"].low == data.metrics["auroc"].high == 1.0,
        "least_accuracy": lambda patients: TAIL ** (1 / patients),
    }


def page_values(
    data: ReportData | SurvivalReport | RegressionReport, slides: Sequence[object], views: Sequence[SlideView]
) -> dict[str, Any]:
    """Values that the templates of every target take.

    Args:
        data: contents of the report.
        slides: of the test split, in the order of the table.
        views: attention and pictures of each.
    """
    return {
        "data": data,
        "test": next((count for count in data.counts if count.split == "test"), None),
        "style": asset("milcore.evaluation.report", "report.css"),
        "table_script": table_script(),
        "script": asset("milcore.evaluation.report", "report.js"),
        "slides": slides,
        "rows": slides[:MOST_ROWS],
        "cards": [slide for slide, view in zip(slides, views, strict=True) if view.choice is not None],
        "page_rows": PAGE_ROWS,
        "quarantined": list(data.quarantined.items())[:MOST_ROWS],
        "scale": _scale,
        "pictures_mb": BASE64 * sum(view.picture_bytes for view in views) / 1e6,
        "trials": None if data.sweep is None else _trials(data.sweep.trials),
        "trial_titles": TRIAL_TITLES,
    }


def _headline(data: ReportData, classes: tuple[str, ...]) -> list[tuple[str, str, str, Estimate]]:
    """(name, title, note, value) of every metric of this run."""
    words = {"positive": classes[-1], "negative": classes[0], "bag": data.bag}
    notes = {name: note.format(**words) for name, _, note in HEADLINE}
    if len(classes) > 2:
        notes |= MACRO_NOTES
    values = data.metrics | data.score.overall
    return [(name, title, notes[name], values[name]) for name, title, _ in HEADLINE if name in values]


def _intervals(data: ReportData) -> list[tuple[str, Estimate, Estimate]]:
    """(title, value with the interval of resampled patients, with the score interval) of metrics."""
    undefined = Estimate(math.nan)
    titles = {name: title for name, title, _ in HEADLINE if name in data.metrics}
    return [(title, data.metrics[name], data.score.overall.get(name, undefined)) for name, title in titles.items()]


def _charts(data: ReportData) -> list[tuple[str, str, Markup]]:
    """(title, caption, picture) of every chart that has data."""
    charts = []
    band = " Shaded: 95 % of resampled patients." if len(data.classes) == 2 else ""
    if any(curve.points for curve in data.roc):
        words = f"ROC curve of the test split, AUROC {number(data.metrics['auroc'].value)}"
        axes = Axes("false positive rate", "true positive rate", UNIT, UNIT, QUARTERS, QUARTERS, diagonal=True)
        charts.append(
            ("ROC on the test split", f"Dashed: a model without skill.{band}", _curves(data.roc, axes, words))
        )
    if any(curve.points for curve in data.precision_recall):
        words = f"Precision against recall on the test split, AUPRC {number(data.metrics['auprc'].value)}"
        axes = Axes("recall", "precision", UNIT, UNIT, QUARTERS, QUARTERS, diagonal=False)
        charts.append(
            ("Precision and recall", f"On the test split.{band}", _curves(data.precision_recall, axes, words))
        )
    if data.reliability:
        charts.append(("Calibration", _CALIBRATION, _calibration(data)))
    if data.flipping is not None:
        caption = f"Mean over {data.flipping.bags} test {data.bag}s. Below random: attention tells what decides."
        charts.append(("Patch flipping", caption, _flipping(data.flipping)))
    training = [
        (title, caption, training_chart(data.history, name))
        for title, name, caption in _TRAINING
        if _has_metric(data, name)
    ]
    return charts + training


_TRAINING = (
    ("Loss while training", "loss", "Validation AUROC, then loss, chose the epoch."),
    ("AUROC while training", "auroc", "Of few validation slides, so it moves in steps."),
)
_CALIBRATION = "Mean probability against the share that came true, test bags in five bins; area = bags."


def _has_metric(data: ReportData, metric: str) -> bool:
    return metric in data.history["metric"].to_pylist()


def _curves(curves: Sequence[Curve], axes: Axes, words: str) -> Markup:
    """Chart of the classes' curves over their bands, with a legend for several."""
    bands = [curve.band for curve in curves if curve.band is not None and curve.band.x]
    series = [Series("band", "band", band_outline(band)) for band in bands]
    series += [
        Series(curve.name, f"line-model class-{k % 6}", curve.points) for k, curve in enumerate(curves) if curve.points
    ]
    return chart(axes, series, words, legend=len(curves) > 1)


def band_outline(band: Band) -> list[Point]:
    """Outline of a band: along the upper edge and back along the lower."""
    upper, lower = zip(band.x, band.high, strict=True), zip(band.x, band.low, strict=True)
    return [*upper, *reversed(list(lower))]


def _flipping(curves: FlippingCurves) -> Markup:
    axes = Axes("share of patches taken out", "probability of the call", UNIT, UNIT, QUARTERS, QUARTERS, diagonal=False)
    lines = (("least attended first", "least"), ("random", "random"), ("most attended first", "most"))
    series = [
        Series(name, f"line-{key}", list(zip(curves.removed, getattr(curves, key), strict=True))) for name, key in lines
    ]
    words = "Patch flipping: " + "; ".join(f"{s.name}, at half {s.points[len(s.points) // 2][1]:.2f}" for s in series)
    return chart(axes, series, words, legend=True)


def _calibration(data: ReportData) -> Markup:
    axes = Axes("mean probability", "share that came true", UNIT, UNIT, QUARTERS, QUARTERS, diagonal=True)
    most = max(count for _, _, count in data.reliability)
    radii = tuple(4 + 8 * math.sqrt(count / most) for _, _, count in data.reliability)
    points = [(probability, share) for probability, share, _ in data.reliability]
    words = "Calibration: " + "; ".join(f"at {p:.2f} {s:.2f} came true, {n} bags" for p, s, n in data.reliability)
    return chart(axes, [Series("test", "dot-model", points, radii)], words)


def training_chart(history: pa.Table, metric: str) -> Markup:
    """Chart of a metric by epoch, a line for each split and fold."""
    rows = [row for row in history.to_pylist() if row["metric"] == metric and math.isfinite(row["value"])]
    lines: dict[tuple[str, int], list[Point]] = {(row["split"], row["fold"]): [] for row in rows}
    for row in sorted(rows, key=lambda row: row["epoch"]):
        lines[row["split"], row["fold"]].append((float(row["epoch"]), float(row["value"])))
    last = max((row["epoch"] for row in rows), default=1) or 1
    titles = {each.name: each.title for each in RANK_METRICS.values()}
    top = 1.0 if metric in titles else max((row["value"] for row in rows), default=1.0) * 1.05 or 1.0
    # R2 of a model that is worse than the mean
    low = min(0.0, 1.05 * min((row["value"] for row in rows), default=0.0))
    title = titles.get(metric, metric)
    axes = Axes("epoch", title, (0.0, float(last)), (low, top), steps(last, 5), ticks(low, top, 5), diagonal=False)
    folds = len({fold for _, fold in lines}) > 1
    series = [
        Series(f"{split}, fold {fold}" if folds else split, f"line-{split}", points)
        for (split, fold), points in sorted(lines.items())
    ]
    words = f"{title} by epoch: " + "; ".join(f"{s.name} ends at {s.points[-1][1]:.3f}" for s in series)
    return chart(axes, series, words)


def _trials(table: pa.Table) -> tuple[list[str], list[dict[str, Any]], int]:
    """Columns with any value, rows, and the row that ranks first on validation."""
    names = [str(name) for name in table.column_names if table[name].null_count < len(table)]
    rows = table.to_pylist()
    metric = next(name for name in map(metric_name, RANK_METRICS) if name in table.column_names)
    validations = [Validation(row["val_loss"], row[metric]) if row["state"] == "ok" else NO_VALIDATION for row in rows]
    ranks = [validation.rank for validation in validations]
    return names, rows, ranks.index(min(ranks))


def _cell(value: object) -> str:
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return DASH
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _scale(slide: SlideView) -> tuple[float, str] | None:
    """Length and label of a slide's scale bar; None where its scale is unknown."""
    return None if slide.mpp is None or slide.size_level0 is None else scale_bar(slide.size_level0[0], slide.mpp)
