"""A run's evaluation as Python objects, read from its folder."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from milcore.errors import InputError
from milcore.evaluation.attention.slide_attention import SlideAttention
from milcore.metrics.classification import Estimate
from milcore.metrics.curves import RocCurve
from milcore.runtime import html
from milcore.runtime.progress import format_interval, format_metric
from milcore.training import run_files
from milcore.training.run_folder import Run, read_metrics

# numbers of ``metrics.json`` that are no metric
SETTINGS = ("threshold", "temperature")


@dataclass(frozen=True)
class SlideEvaluation:
    """Label, prediction and attention of one test slide.

    Args:
        label: its class.
        predicted: the class that was called.
        probabilities: by class, of the slide's bag.
        entropy: of its attention as a share of the largest possible; NaN for one patch.
    """

    slide_id: str
    patient_id: str
    label: str
    predicted: str
    probabilities: Mapping[str, float]
    entropy: float
    attention: SlideAttention

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
        """Class names, by label."""
        return tuple(self._content["classes"])

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Each metric of the test split, with its 95 % interval.

        As in the report, it is the score interval where the metric has one, else that of resampled patients.
        """
        return _estimates(self._content)

    @property
    def resampled(self) -> dict[str, Estimate]:
        """Each metric of the test split, with its 95 % interval from resampled patients."""
        return _estimates(dict(self._content) | {"score_intervals": {}})

    @property
    def per_class(self) -> dict[str, dict[str, Estimate]]:
        """Metrics of each class against the rest; empty for two classes."""
        return {name: _estimates(values) for name, values in self._content["per_class"].items()}

    @property
    def patients(self) -> dict[str, Estimate]:
        """Metrics of patients; empty where every patient has one bag."""
        return _estimates(self._content["patients"])

    @property
    def comparison(self) -> dict[str, tuple[float, float]]:
        """AUROC and localisation AUROC of the run and its baselines.

        NaN where undefined.
        """
        rows = self._content["comparison"]
        return {row["name"]: (_or_nan(row["auroc"]), _or_nan(row["localisation_auroc"])) for row in rows}

    @property
    def confusion(self) -> list[list[int]]:
        """Counts of bags: row of the true class, column of the called one."""
        return [list(row) for row in self._content["confusion"]]

    @property
    def roc(self) -> RocCurve:
        """ROC curve of the positive class of two, or the micro-average of more."""
        return RocCurve(**self._content["roc"])

    @property
    def threshold(self) -> float | None:
        """Lowest probability called positive, chosen on validation.

        None with more than two classes.
        """
        threshold: float | None = self._content["threshold"]
        return threshold

    @property
    def warnings(self) -> tuple[str, ...]:
        """Findings of the checks of attention."""
        return tuple(self._content["warnings"])

    @cached_property
    def slides(self) -> dict[str, SlideEvaluation]:
        """Test slides by id."""
        labels = {
            slide_id: (row["patient_id"], self.classes[row["label"]])
            for row in self.run.predictions().to_pylist()
            for slide_id in row["slide_id"].split(";")
        }
        return {
            row["slide_id"]: SlideEvaluation(
                row["slide_id"],
                *labels[row["slide_id"]],
                predicted=row["called"],
                probabilities=dict(zip(self.classes, row["probabilities"], strict=True)),
                entropy=_or_nan(row["entropy"]),
                attention=SlideAttention(self.run.attention_uri, row["slide_id"]),
            )
            for row in run_files.read_json(self.run.attention_index_uri)
        }

    def as_dict(self) -> dict[str, object]:
        """The content of ``metrics.json``, with the URI of the report."""
        return self._content | {"report": self.report}

    @property
    def line(self) -> str:
        """AUROC, accuracy and localisation AUROC in one line."""
        return ", ".join(_metric_text(name, self.metrics[name]) for name in ("auroc", "accuracy", "localisation_auroc"))

    def __repr__(self) -> str:
        return f"Evaluation({self.run.uri}: AUROC {self.metrics['auroc']})"

    def _repr_html_(self) -> str:
        """Metrics with intervals, the models to beat and warnings, for a notebook."""
        rows = [
            (name, f"{each}" if each.reason is None else f"{each}: {each.reason}")
            for name, each in self.metrics.items()
        ]
        others = [
            (row["name"], format_metric(row["auroc"]), format_metric(row["localisation_auroc"]))
            for row in self._content["comparison"]
        ]
        return (
            html.table(["test split", "value (95 % interval)"], rows)
            + html.table(["model", "AUROC", "localisation AUROC"], others)
            + "".join(html.line(f"warning: {warning}") for warning in self.warnings)
            + html.line(f"report: {self.report}")
        )


_HEADER = ("slide", "patient", "label", "called", "probabilities")


def _cells(slide: SlideEvaluation) -> tuple[str, ...]:
    probabilities = ", ".join(f"{name} {value:.3f}" for name, value in slide.probabilities.items())
    return (slide.slide_id, slide.patient_id, slide.label, slide.predicted, probabilities)


def _metric_text(name: str, estimate: Estimate) -> str:
    interval = None if math.isnan(estimate.low) else (estimate.low, estimate.high)
    return f"{name} {format_metric(None if math.isnan(estimate.value) else estimate.value)}{format_interval(interval)}"


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
