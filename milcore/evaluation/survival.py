"""Evaluation of survival: columns of predictions, metrics, baselines, attention, report and model card."""

import posixpath
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from milcore.cohort.site_splits import slide_sites
from milcore.config import SPLIT_NAMES
from milcore.evaluation.classification import run_title
from milcore.evaluation.gather_report import config_text, provenance
from milcore.evaluation.number_views import number_views
from milcore.evaluation.report import SlideView
from milcore.evaluation.report.survival_contents import SurvivalComparison, SurvivalCount, SurvivalReport, SurvivalSlide
from milcore.evaluation.report.survival_page import render_survival, survival_model_card
from milcore.evaluation.run_predictions import RunPredictions, SplitPredictions
from milcore.evaluation.survival_baselines import compare_risks, risk_predictions
from milcore.evaluation.survival_curves import SURVIVAL_MODELS, survival_columns
from milcore.evaluation.survival_json import survival_json
from milcore.evaluation.target import EvaluationOptions, EvaluationPages, EvaluationTarget, check_no_comparison
from milcore.metrics.survival.summary import SurvivalMetrics, measurement_times, survival_metrics
from milcore.runtime.progress import log_line
from milcore.training.run_folder import Run
from milcore.training.survival import risk_columns

# below so many events in the test split an interval tells little
FEW_EVENTS = 10


def _columns(run: RunPredictions) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """Time and event of every bag, its risk, and survival at cut points."""
    entries, predictions = run.bags.entries, [run.predictions[index] for index in range(len(run.bags.entries))]
    outcomes, predicted = risk_columns(entries, predictions)
    survival = {
        name: pa.array([float(each.probability[place]) for each in predictions], pa.float64())
        for place, name in enumerate(survival_columns(run.cut_points.tolist()), start=1)
    }
    return outcomes, predicted | survival


def _evaluate(run: RunPredictions, options: EvaluationOptions) -> EvaluationPages:
    """Measure risks on the test split; all that is estimated comes from training.

    Raises:
        InputError: a run to compare with is named.
    """
    check_no_comparison(run, options)
    sites = slide_sites(run.store.manifest())
    splits = (run.split(name) for name in (_reference(run), "test"))
    training, test = (risk_predictions(split.entries, split.risk, sites) for split in splits)
    model, times = SURVIVAL_MODELS[run.spec.train.target], measurement_times(test.outcome, training.outcome)
    curves = model.curves(run.split("test").probability, training, run.cut_points)
    metrics = survival_metrics(test, training, run.spec.train.seed, times, curves.survival(times))
    comparison = [SurvivalComparison.of(*run_title(run.spec), metrics)]
    if options.baselines:
        log_line("comparing with simple models")
        comparison += compare_risks(run.spec.train, run.as_split, run.catalogue, metrics.times, options.device)
    views = list(_views(run, options))
    data = SurvivalReport(
        title=run.uri.rsplit("/", 1)[-1],
        time=str(run.spec.train.time),
        event=str(run.spec.train.event),
        bag=run.spec.train.bag,
        model=model,
        cut_points=tuple(run.cut_points.tolist()),
        counts=tuple(_count(split, run.split(split)) for split in SPLIT_NAMES if run.bags.split(split)),
        reference=_reference_text(run),
        metrics=metrics,
        warnings=_warnings(metrics),
        comparison=tuple(comparison),
        history=run.history(),
        folds=run.spec.folds,
        sweep=options.sweep,
        slides=_slides(views, run.split("test"), curves.expected_events(test.outcome.time)),
        quarantined=run.catalogue.quarantined(),
        provenance=provenance(run),
        config=config_text(run),
    )
    summary = survival_json(run, data, posixpath.basename(Run(run.uri).report_uri))
    return EvaluationPages(summary, render_survival(data), survival_model_card(data), data.warnings)


def _views(run: RunPredictions, options: EvaluationOptions) -> Iterator[SlideView]:
    """Views of the test slides.

    Of many those of the highest and the lowest risk have pictures.
    """
    risk = {index: float(run.predictions[index].probability[0]) for index in run.bags.split("test")}
    kinds = {"high risk": risk, "low risk": {index: -value for index, value in risk.items()}}
    return number_views(run, options, "risk", kinds)


def _reference(run: RunPredictions) -> str:
    """Split of the patients that all is estimated of.

    In a run of folds no bag is in training: each has the prediction of the model that was not trained on it.
    """
    return "train" if run.bags.split("train") else "val"


def _reference_text(run: RunPredictions) -> str:
    if _reference(run) == "train":
        return "the training patients"
    return "the patients outside the test split, each with the risk of the fold that was not trained on them"


def _count(name: str, split: SplitPredictions) -> SurvivalCount:
    time, event = split.follow_up
    return SurvivalCount(name, len(set(split.patients)), int(event.sum()), float(np.median(time)))


def _warnings(metrics: SurvivalMetrics) -> tuple[str, ...]:
    """Reasons to read the figures with care."""
    few = f"{metrics.events} event(s) in the test split: with fewer than {FEW_EVENTS} the figures tell little"
    return (few,) if metrics.events < FEW_EVENTS else ()


def _slides(
    views: Sequence[SlideView], test: SplitPredictions, expected: Float[np.ndarray, " bag"]
) -> tuple[SurvivalSlide, ...]:
    """Views of the test slides with time, event, risk and residual of their patients.

    Args:
        views: of the slides of all bags.
        test: the bags.
        expected: events of each bag until the end of its follow-up.
    """
    time, event = test.follow_up
    of_bags = zip(test.entries, time, event, test.risk, event - expected, strict=True)
    rows = [(float(t), bool(e), float(r), float(left)) for entry, t, e, r, left in of_bags for _ in entry.slides]
    return tuple(SurvivalSlide(view, *row) for view, row in zip(views, rows, strict=True))


SURVIVAL = EvaluationTarget(columns=_columns, evaluate=_evaluate)
