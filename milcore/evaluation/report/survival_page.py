"""HTML report and model card of a run on survival."""

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from milcore.evaluation.report import markdown
from milcore.evaluation.report.charts import Axes, Point, Series, TickRow, chart, steps
from milcore.evaluation.report.page import (
    QUARTERS,
    UNIT,
    band_outline,
    environment,
    number,
    page_values,
    training_chart,
)
from milcore.evaluation.report.survival_contents import SurvivalReport
from milcore.metrics.classification import Estimate
from milcore.metrics.curves import Band
from milcore.metrics.survival.kaplan_meier import KaplanMeier
from milcore.metrics.survival.risk_groups import RiskGroup
from milcore.training.selection import HARRELL_C

HEADLINE = (
    ("harrell_c", "Harrell's C", "chance that of two patients the one with the earlier event has the higher risk"),
    ("uno_c", "Uno's C", "the same up to tau, freed of how patients are censored"),
    ("mean_dynamic_auc", "Mean dynamic AUC", "patients with the event by a time against those without it then"),
    (
        "integrated_brier_score",
        "Integrated Brier score",
        "mean square error of predicted survival; 0 is perfect",
    ),
    ("hazard_ratio", "Hazard ratio", "of high over low risk, cut at the median risk of training"),
    ("log_rank_p", "Log-rank p", "chance of such a difference of the two groups if there were none"),
)
SMALL_P = 0.001
STYLES = {"low": ("line-model", "band"), "high": ("line-model class-1", "band high")}


def render_survival(data: SurvivalReport) -> str:
    """The report as HTML, which reads in print and without script."""
    return environment().get_template("survival.html.j2").render(_template_values(data))


def survival_model_card(data: SurvivalReport) -> str:
    """The model card as Markdown."""
    templates = environment()
    templates.finalize = markdown.text
    return templates.get_template("SURVIVAL_MODEL_CARD.md.j2").render(_template_values(data))


def _template_values(data: SurvivalReport) -> dict[str, Any]:
    slides = sorted(data.slides, key=lambda slide: (-abs(slide.residual), slide.view.slide_id))
    values = data.metrics.overall
    return {
        **page_values(data, slides, [slide.view for slide in slides]),
        "headline": [(name, title, note, values[name]) for name, title, note in HEADLINE],
        "shown": p_or_number,
        "charts": _charts(data),
        "rank_title": HARRELL_C.title,
        "time_text": time_text,
    }


def time_text(value: float) -> str:
    """Up to six digits of a time: a day in decades."""
    return f"{value:g}"


def p_or_number(name: str, value: float) -> str:
    """Three decimals; a p below 0.001 as that."""
    return f"< {SMALL_P}" if name == "log_rank_p" and value < SMALL_P else number(value)


def _charts(data: SurvivalReport) -> list[tuple[str, str, Markup]]:
    """(title, caption, picture) of every chart that has data."""
    metrics, charts = data.metrics, []
    if all(group.curve for group in metrics.groups):
        caption = "Kaplan-Meier survival of test patients, cut at the training patients' median risk. Shaded: 95 %."
        charts.append(("Survival by risk group", caption, _survival(metrics.groups, data.time)))
    if any(not math.isnan(each.value) for each in metrics.dynamic_auc):
        caption = "Events by a time against patients followed beyond it. Dashed: chance. Shaded: 95 % of resamples."
        charts.append(("Dynamic AUC", caption, _over_time(data, metrics.dynamic_auc)))
    if metrics.calibration:
        caption = f"Survival at {time_text(_middle(data))}, in groups of equal size; area = patients, lines = 95 %."
        charts.append(("Calibration", caption, _calibration(data)))
    names = {"loss": "Loss while training", HARRELL_C.name: f"{HARRELL_C.title} while training"}
    present = set(data.history["metric"].to_pylist())
    return charts + [
        (title, "Validation chose the epoch.", training_chart(data.history, name))
        for name, title in names.items()
        if name in present
    ]


def _middle(data: SurvivalReport) -> float:
    """Time of the calibration."""
    return data.metrics.times[len(data.metrics.times) // 2]


def _survival(groups: tuple[RiskGroup, RiskGroup], unit: str) -> Markup:
    curves = [(group, group.curve) for group in groups if group.curve is not None]
    last = max(float(curve.time[-1]) for _, curve in curves) or 1.0
    ticks = steps(last, 5)
    axes = Axes(unit.replace("_", " "), "survival", (0.0, last), UNIT, ticks, QUARTERS, diagonal=False)
    series = [Series("band", STYLES[group.name][1], _band(curve)) for group, curve in curves]
    series += [
        Series(f"{group.name} risk: {group.patients} patients, {group.events} events", STYLES[group.name][0], line)
        for group, curve in curves
        for line in [_stairs(curve.time, curve.survival)]
    ]
    rows = [
        TickRow(group.name, STYLES[group.name][0], tuple(curve.at_risk_at(np.array(ticks)).tolist()))
        for group, curve in curves
    ]
    words = "Kaplan-Meier curves: " + "; ".join(
        f"{group.name} risk ends at {curve.survival[-1]:.2f}" for group, curve in curves
    )
    return chart(axes, series, words, legend=True, rows=rows)


def _stairs(time: np.ndarray, values: np.ndarray) -> list[Point]:
    """Corners of a step curve that starts at (0, 1)."""
    x = np.repeat(np.append(0.0, time), 2)[1:]
    y = np.repeat(np.append(1.0, values), 2)[:-1]
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _band(curve: KaplanMeier) -> list[Point]:
    """Outline of the interval: along the upper end and back along the lower."""
    return [*_stairs(curve.time, curve.high), *reversed(_stairs(curve.time, curve.low))]


def _over_time(data: SurvivalReport, estimates: tuple[Estimate, ...]) -> Markup:
    of_times = zip(data.metrics.times, estimates, strict=True)
    points = [(time, each) for time, each in of_times if not math.isnan(each.value)]
    last = data.metrics.times[-1]
    axes = Axes(data.time.replace("_", " "), "AUC", (0.0, last), UNIT, steps(last, 5), QUARTERS, diagonal=False)
    times = [time for time, _ in points]
    band = Band(times, [each.low for _, each in points], [each.high for _, each in points])
    line = [(time, each.value) for time, each in points]
    words = "Dynamic AUC: " + "; ".join(f"{value:.2f} at {time_text(time)}" for time, value in line)
    series = [
        Series("band", "band", band_outline(band)),
        Series("chance", "diagonal", [(0.0, 0.5), (last, 0.5)]),
        Series("AUC", "line-model", line),
        Series("AUC", "dot-model", line, (3.0,) * len(line)),
    ]
    return chart(axes, series, words)


def _calibration(data: SurvivalReport) -> Markup:
    groups = data.metrics.calibration
    axes = Axes("predicted survival", "survival (Kaplan-Meier)", UNIT, UNIT, QUARTERS, QUARTERS, diagonal=True)
    most = max(group.patients for group in groups)
    radii = tuple(3 + 5 * math.sqrt(group.patients / most) for group in groups)
    lines = [
        Series("interval", "line-model", [(group.predicted, group.low), (group.predicted, group.high)])
        for group in groups
    ]
    words = "Calibration: " + "; ".join(
        f"predicted {each.predicted:.2f}, {each.survival:.2f} of {each.patients} patients survive" for each in groups
    )
    dots = Series("test", "dot-model", [(group.predicted, group.survival) for group in groups], radii)
    return chart(axes, [*lines, dots], words)
