"""Evaluation of regression: columns of predictions, metrics, baselines, attention, report and model card."""

import posixpath
from collections.abc import Iterator, Sequence

import pyarrow as pa

from milcore.cohort.site_splits import slide_sites
from milcore.config import SPLIT_NAMES
from milcore.evaluation.classification import run_title
from milcore.evaluation.gather_report import config_text, provenance
from milcore.evaluation.number_views import number_views
from milcore.evaluation.regression_baselines import compare_values, value_predictions
from milcore.evaluation.regression_json import regression_json
from milcore.evaluation.report import SlideView
from milcore.evaluation.report.regression_contents import (
    RegressionComparison,
    RegressionCount,
    RegressionReport,
    RegressionSlide,
)
from milcore.evaluation.report.regression_page import regression_model_card, render_regression
from milcore.evaluation.run_predictions import RunPredictions, SplitPredictions
from milcore.evaluation.target import EvaluationOptions, EvaluationPages, EvaluationTarget, check_no_comparison
from milcore.metrics.regression.scale import TargetScale
from milcore.metrics.regression.summary import RegressionMetrics, regression_metrics
from milcore.mil.bags.bags import value_array
from milcore.mil.inference import mean_constants
from milcore.runtime.progress import log_line
from milcore.training.regression import value_columns
from milcore.training.run_folder import Run

# below so many patients in the test split an interval tells little
FEW_PATIENTS = 10


def _columns(run: RunPredictions) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """True and predicted value of every bag."""
    entries = run.bags.entries
    return value_columns(entries, [run.predictions[index] for index in range(len(entries))])


def _evaluate(run: RunPredictions, options: EvaluationOptions) -> EvaluationPages:
    """Measure predicted values on the test split.

    Raises:
        InputError: a run to compare with is named.
    """
    check_no_comparison(run, options)
    sites = slide_sites(run.store.manifest())
    split = run.split("test")
    test = value_predictions(split.entries, split.probability[:, 0], sites)
    metrics = regression_metrics(test, run.spec.train.seed)
    comparison = [RegressionComparison.of(*run_title(run.spec), metrics)]
    if options.baselines:
        log_line("comparing with simple models")
        comparison += compare_values(run.spec.train, run.as_split, run.catalogue, options.device)
    views = list(_views(run, options))
    data = RegressionReport(
        title=run.uri.rsplit("/", 1)[-1],
        column=str(run.spec.train.target_column),
        bag=run.spec.train.bag,
        scale=TargetScale(*mean_constants(run.models).tolist()),
        huber_delta=run.spec.train.huber_delta,
        counts=tuple(_count(name, run.split(name)) for name in SPLIT_NAMES if run.bags.split(name)),
        test=test,
        metrics=metrics,
        warnings=_warnings(metrics),
        comparison=tuple(comparison),
        history=run.history(),
        folds=run.spec.folds,
        sweep=options.sweep,
        slides=_slides(views, split),
        quarantined=run.catalogue.quarantined(),
        provenance=provenance(run),
        config=config_text(run),
    )
    summary = regression_json(run, data, posixpath.basename(Run(run.uri).report_uri))
    return EvaluationPages(summary, render_regression(data), regression_model_card(data), data.warnings)


def _views(run: RunPredictions, options: EvaluationOptions) -> Iterator[SlideView]:
    """Views of the test slides.

    Of many those of the largest error, the highest and the lowest prediction have pictures.
    """
    predicted = {index: float(run.predictions[index].probability[0]) for index in run.bags.split("test")}
    true = dict(zip(predicted, value_array([run.bags.entries[index] for index in predicted]).tolist(), strict=True))
    kinds = {
        "high predicted value": predicted,
        "low predicted value": {index: -value for index, value in predicted.items()},
        "large error": {index: abs(value - true[index]) for index, value in predicted.items()},
    }
    return number_views(run, options, "predicted_value", kinds)


def _count(name: str, split: SplitPredictions) -> RegressionCount:
    values = value_array(split.entries)
    return RegressionCount(
        name,
        len(set(split.patients)),
        len(values),
        float(values.mean()),
        float(values.std()),
        float(values.min()),
        float(values.max()),
    )


def _warnings(metrics: RegressionMetrics) -> tuple[str, ...]:
    """Reasons to read the figures with care."""
    few = f"{metrics.patients} patient(s) in the test split: with fewer than {FEW_PATIENTS} the figures tell little"
    return (few,) if metrics.patients < FEW_PATIENTS else ()


def _slides(views: Sequence[SlideView], test: SplitPredictions) -> tuple[RegressionSlide, ...]:
    """Views of the test slides with true and predicted value of their bags."""
    of_bags = zip(test.entries, value_array(test.entries).tolist(), test.probability[:, 0].tolist(), strict=True)
    rows = [(true, predicted) for entry, true, predicted in of_bags for _ in entry.slides]
    return tuple(RegressionSlide(view, *row) for view, row in zip(views, rows, strict=True))


REGRESSION = EvaluationTarget(columns=_columns, evaluate=_evaluate)
