"""Evaluation of classification: rule, metrics, checks of attention, baselines, report and model card."""

import posixpath

import numpy as np
import pyarrow as pa

from milcore.config import RunSpec
from milcore.evaluation.attention.checks import check_attention
from milcore.evaluation.baselines import compare
from milcore.evaluation.decision import choose_rule
from milcore.evaluation.gather_report import report_data
from milcore.evaluation.metrics_json import metrics_json
from milcore.evaluation.regions import annotated_regions, region_labels
from milcore.evaluation.report import model_card, render
from milcore.evaluation.results import RunResults
from milcore.evaluation.run_predictions import RunPredictions
from milcore.evaluation.scores import SplitMetrics, measure
from milcore.evaluation.sites import site_results
from milcore.evaluation.sites_json import sites_json
from milcore.evaluation.target import EvaluationOptions, EvaluationPages, EvaluationTarget
from milcore.evaluation.views import AttentionOutputs, slide_views
from milcore.metrics.classification import Comparison
from milcore.runtime.progress import log_line
from milcore.store.slide_group import SlideGroup
from milcore.training.run_folder import Run


def _columns(run: RunPredictions) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """Labels, and the probability of the positive class of two or of every class."""
    entries = run.bags.entries
    probability = np.array([run.predictions[index].probability for index in range(len(entries))])
    labels = {"label": pa.array([entry.label for entry in entries], pa.int64())}
    if len(run.spec.classes) == 2:
        return labels, {"probability": pa.array(probability[:, 1], pa.float64())}
    return labels, {
        f"probability_{name}": pa.array(probability[:, k], pa.float64()) for k, name in enumerate(run.spec.classes)
    }


def _evaluate(run: RunPredictions, options: EvaluationOptions) -> EvaluationPages:
    """Evaluate by a rule that is chosen on the validation split alone."""
    rule, groups = choose_rule(run.split("val")), _groups(run)
    # first, since it refuses a run that cannot be compared with
    sites = site_results(run, rule, options.compare_with)
    regions = annotated_regions(run, groups, options.annotations)
    labels = region_labels(groups, regions)
    metrics = measure(run.split("test"), rule, run.spec.train.seed)
    checks = check_attention(run, rule, labels)
    metrics = metrics._replace(overall=metrics.overall | checks.estimates)
    comparison = [_run_row(run.spec, metrics)]
    if options.baselines:
        log_line("comparing with simple models")
        comparison += compare(run.spec.train, run.as_split, run.catalogue, labels, options.device)
    outputs = AttentionOutputs(options.files, options.with_leave_one_out)
    views = tuple(slide_views(run, rule, regions, checks, outputs))
    results = RunResults(run, rule, metrics, checks, comparison, sites)
    data = report_data(results, views, options.sweep)
    summary = metrics_json(results, posixpath.basename(Run(run.uri).report_uri)) | sites_json(sites)
    return EvaluationPages(summary, render(data), model_card(data), results.warnings)


def _groups(run: RunPredictions) -> dict[str, SlideGroup]:
    """Slides of all splits that may hold positive instances."""
    classes = len(run.spec.classes)
    entries = [entry for entry in run.bags.entries if entry.label == 1 or classes > 2]
    names = [slide_id for entry in entries for slide_id in entry.slides]
    return run.catalogue.slides(names)


def _run_row(spec: RunSpec, metrics: SplitMetrics) -> Comparison:
    return Comparison(*run_title(spec), metrics.auroc, metrics.overall["localisation_auroc"])


def run_title(spec: RunSpec) -> tuple[str, str]:
    """Name and note of a run among the models it is compared with."""
    source = spec.train.features or f"{spec.train.encoder}, trained end to end"
    models = f"mean of {spec.folds} folds, " if spec.folds else ""
    return f"{spec.train.pooling.replace('_', ' ')} pooling, {spec.train.level} level", f"this run, {models}on {source}"


CLASSIFICATION = EvaluationTarget(columns=_columns, evaluate=_evaluate)
