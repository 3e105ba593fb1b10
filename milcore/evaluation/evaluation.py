"""A run's evaluation as Python objects, read from its folder."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from milcore.config import Target
from milcore.errors import InputError
from milcore.evaluation.attention.slide_attention import SlideAttention
from milcore.metrics.classification import Estimate
from milcore.metrics.curves import RocCurve
from milcore.runtime import html
from milcore.runtime.progress import format_interval, format_metric, format_quantity
from milcore.training import run_files
from milcore.training.run_folder import Run, read_metrics

# numbers of ``metrics.json`` that are no metric
SETTINGS = ("threshold", "temperature")


class Figures(NamedTuple):
    """Figures of a target that an evaluation shows first.

    Args:
        compared: two metrics of the models in the comparison, the first the main one.
        line: metrics of the run.
    """

    compared: tuple[str, str]
    line: tuple[str, ...]


_OF_SURVIVAL = Figures(("harrell_c", "uno_c"), ("harrell_c", "uno_c", "hazard_ratio"))
FIGURES: dict[Target, Figures] = {
    "classification": Figures(("auroc", "localisation_auroc"), ("auroc", "accuracy", "localisation_auroc")),
    "survival_cox": _OF_SURVIVAL,
    "survival_hazard": _OF_SURVIVAL,
    "regression": Figures(("r2", "mae"), ("r2", "mae", "spearman")),
}


@dataclass(frozen=True)
class SlideEvaluation:
    """Label, prediction and attention of one test slide.

    Args:
        label: its class; empty for another target.
        predicted: the class that was called; None for another target.
        probabilities: by class, of the slide's bag; empty for another target.
        entropy: of its attention as a share of the largest possible; NaN for one patch.
        risk: of survival, higher for an earlier event; None for classes.
        time: of survival: to the event or to censoring, of the slide's patient.
        event: of survival: True where the event came at that time.
        value: of regression: the true value of the slide's bag, in the unit of its column.
        predicted_value: of regression, in the same unit.
    """

    slide_id: str
    patient_id: str
    label: str
    predicted: str | None
    probabilities: Mapping[str, float]
    entropy: float
    attention: SlideAttention
    risk: float | None = None
    time: float | None = None
    event: bool | None = None
    value: float | None = None
    predicted_value: float | None = None

    def _repr_html_(self) -> str:
        """The slide's row and overlay, for a notebook."""
        return html.table(_HEADER, [_cells(self)]) + self.attention._repr_html_()


class Evaluation:
    """Results of a run on its test split.

    Args:
        run: evaluated before, or its URI.

    Raises:
        InputError: the run is not evaluated.
    """

    def __init__(self, run: Run | str | os.PathLike[str]) -> None:
        self.run = run = run if isinstance(run, Run) else Run(os.fspath(run))
        content = read_metrics(run)
        if content is None:
            raise InputError(f"{run.uri}: expected an evaluated run, got no metrics.json; run milcore evaluate first")
        self._content = content

    @property
    def report(self) -> str:
        """URI of the HTML report."""
        return self.run.report_uri

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label; empty for another target."""
        return tuple(self._content["classes"])

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Each metric of the test split, with its 95 % interval.

        As in the report, it is the score interval where the metric has one, else that of resampled patients.
        """
        return _estimates(self._content)

    @property
    def resampled(self) -> dict[str, Estimate]:
        """Each metric of the test split, with its 95 % interval from resampled patients.

        That of survival's hazard ratio is Wald's.
        """
        return _estimates(dict(self._content) | {"score_intervals": {}})

    @property
    def per_class(self) -> dict[str, dict[str, Estimate]]:
        """Metrics of each class against the rest; empty for two classes."""
        return {name: _estimates(values) for name, values in self._content.get("per_class", {}).items()}

    @property
    def patients(self) -> dict[str, Estimate]:
        """Metrics of patients; empty where every patient has one bag."""
        return _estimates(self._content.get("patients", {}))

    @property
    def sites(self) -> dict[str, dict[str, Estimate]]:
        """Metrics of each site's bags; empty where fewer than two sites are known."""
        return {name: _estimates(values) for name, values in self._content.get("sites", {}).items()}

    @property
    def site_confounding(self) -> dict[str, Estimate]:
        """Signs that the model may read the site in place of the class.

        AUROC over all sites and within them, the difference, a probe of the site and the robustness index. Empty for
        survival, and where fewer than two sites are known.
        """
        content = self._content.get("site_confounding", {})
        return {name: each for name, each in _estimates(content).items() if not name.endswith("_chance")}

    @property
    def comparison(self) -> dict[str, tuple[float, float]]:
        """AUROC and localisation AUROC of the run and its baselines.

        Of survival it is Harrell's and Uno's C, of regression R2 and the mean absolute error. NaN where undefined.
        """
        first, second = self._figures.compared
        return {row["name"]: (_or_nan(row[first]), _or_nan(row[second])) for row in self._content["comparison"]}

    @property
    def _figures(self) -> Figures:
        """Figures of the run's target; only those of others than classes name it."""
        target: Target = self._content.get("target", "classification")
        return FIGURES[target]

    @property
    def confusion(self) -> list[list[int]]:
        """Counts of bags, row of the true class, column of the called one."""
        return [list(row) for row in self._content.get("confusion", ())]

    @property
    def roc(self) -> RocCurve:
        """ROC curve of the positive class of two, or the micro-average of more.

        Empty for another target.
        """
        return RocCurve(**self._content["roc"]) if "roc" in self._content else RocCurve([], [], [])

    @property
    def threshold(self) -> float | None:
        """Lowest probability called positive, chosen on validation.

        None with more than two classes, and for another target.
        """
        threshold: float | None = self._content.get("threshold")
        return threshold

    @property
    def warnings(self) -> tuple[str, ...]:
        """Findings of the checks of attention; of other targets, too few events or patients."""
        return tuple(self._content["warnings"])

    @cached_property
    def slides(self) -> dict[str, SlideEvaluation]:
        """Test slides by id."""
        bags = {slide_id: row for row in self.run.predictions().to_pylist() for slide_id in row["slide_id"].split(";")}
        return {
            row["slide_id"]: self._slide(row, bags[row["slide_id"]])
            for row in run_files.read_json(self.run.attention_index_uri)
        }

    def _slide(self, row: Mapping[str, Any], bag: Mapping[str, Any]) -> SlideEvaluation:
        """A slide from its rows in the index of attention and the predictions."""
        return SlideEvaluation(
            row["slide_id"],
            bag["patient_id"],
            label=self.classes[bag["label"]] if self.classes else "",
            predicted=row.get("called"),
            probabilities=dict(zip(self.classes, row["probabilities"], strict=True)) if self.classes else {},
            entropy=_or_nan(row["entropy"]),
            attention=SlideAttention(self.run.attention_uri, row["slide_id"]),
            risk=bag.get("risk"),
            time=bag.get("time"),
            event=None if "event" not in bag else bool(bag["event"]),
            value=bag.get("value"),
            predicted_value=bag.get("predicted_value"),
        )

    def as_dict(self) -> dict[str, object]:
        """The content of ``metrics.json``, with the URI of the report."""
        return self._content | {"report": self.report}

    @property
    def line(self) -> str:
        """Main metrics in one line.

        AUROC, accuracy and localisation AUROC; of survival the C-indices and the hazard ratio; of regression R2, mean
        absolute error and Spearman's correlation.
        """
        return ", ".join(_metric_text(name, self.metrics[name]) for name in self._figures.line)

    def __repr__(self) -> str:
        first = self._figures.compared[0]
        return f"Evaluation({self.run.uri}: {_TITLES[first]} {self.metrics[first]})"

    def _repr_html_(self) -> str:
        """Metrics with intervals, the models to beat and warnings, for a notebook."""
        rows = [(name, _value_text(name, each)) for name, each in self.metrics.items()]
        compared = self._figures.compared
        others = [
            (row["name"], *(_number_text(name, row[name]) for name in compared)) for row in self._content["comparison"]
        ]
        return (
            html.table(["test split", "value (95 % interval)"], rows)
            + html.table(["model", *(_TITLES[name] for name in compared)], others)
            + "".join(html.line(f"warning: {warning}") for warning in self.warnings)
            + html.line(f"report: {self.report}")
        )


_HEADER = ("slide", "patient", "label", "called", "prediction")
_TITLES = {
    "auroc": "AUROC",
    "localisation_auroc": "localisation AUROC",
    "harrell_c": "Harrell's C",
    "uno_c": "Uno's C",
    "r2": "R2",
    "mae": "mean absolute error",
}
# in the unit of the column
_IN_UNITS = {"mae", "rmse", "bias", "lower_limit", "upper_limit"}


def _cells(slide: SlideEvaluation) -> tuple[str, ...]:
    if slide.risk is not None:
        end = f"{'event' if slide.event else 'censored'} at {slide.time:g}"
        return (slide.slide_id, slide.patient_id, end, "", f"risk {slide.risk:.3f}")
    if slide.value is not None:
        true, predicted = format_quantity(slide.value), format_quantity(slide.predicted_value)
        return (slide.slide_id, slide.patient_id, true, "", predicted)
    probabilities = ", ".join(f"{name} {value:.3f}" for name, value in slide.probabilities.items())
    return (slide.slide_id, slide.patient_id, slide.label, slide.predicted or "", probabilities)


def _metric_text(name: str, estimate: Estimate) -> str:
    interval = None if math.isnan(estimate.low) else (estimate.low, estimate.high)
    value = None if math.isnan(estimate.value) else estimate.value
    ends = format_interval(interval, format_quantity) if name in _IN_UNITS else format_interval(interval)
    return f"{name} {_number_text(name, value)}{ends}"


def _number_text(name: str, value: float | None) -> str:
    return format_quantity(value) if name in _IN_UNITS else format_metric(value)


def _value_text(name: str, estimate: Estimate) -> str:
    """Value and interval, or why there is none."""
    if estimate.reason is not None:
        return f"{estimate}: {estimate.reason}"
    if name not in _IN_UNITS:
        return f"{estimate}"
    value, low, high = (format_quantity(each) for each in (estimate.value, estimate.low, estimate.high))
    return value if math.isnan(estimate.low) else f"{value} ({low} to {high})"


def _estimates(content: Mapping[str, Any]) -> dict[str, Estimate]:
    """Metrics of an object with values by name, intervals and ``reasons``.

    Earlier versions wrote no ``score_intervals``.
    """
    intervals = content.get("intervals", {}) | content.get("score_intervals", {})
    reasons = content.get("reasons", {})
    values = {name: value for name, value in content.items() if isinstance(value, float) and name not in SETTINGS}
    return {
        **{name: Estimate(value, *intervals.get(name, ())) for name, value in values.items()},
        **{name: Estimate(math.nan, reason=reason) for name, reason in reasons.items()},
    }


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
