"""Results of an evaluation as one JSON object."""

import math
from typing import Any

import numpy as np

from milcore.config import SPLIT_NAMES
from milcore.evaluation.attention.patch_flipping import normalised_entropy
from milcore.evaluation.results import RunResults
from milcore.evaluation.run_predictions import RunPredictions
from milcore.evaluation.scores import roc_of
from milcore.metrics.classification import Estimate, confusion


def metrics_json(evaluation: RunResults, report: str) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Args:
        evaluation: of one run.
        report: file name of its report, in the same folder.
    """
    run, rule, metrics, checks, comparison, _ = evaluation
    test = run.split("test")
    classes, score = run.spec.classes, metrics.score
    delong, is_binary = metrics.auroc_delong, len(run.spec.classes) == 2
    return {
        **metric_entries(metrics.overall, score.overall),
        **{f"{name}_calibrated": nan_to_none(estimate.value) for name, estimate in metrics.calibrated.items()},
        "attention_entropy": nan_to_none(attention_entropy(run)),
        "auroc_newcombe": [metrics.auroc.low, metrics.auroc.high] if is_binary and not metrics.auroc.reason else None,
        "auroc_delong": None if math.isnan(delong.low) else [delong.low, delong.high],
        "per_class": {
            name: metric_entries(*of_class)
            for name, *of_class in zip(classes, metrics.of_class, score.of_class, strict=False)
        },
        "patients": metric_entries(metrics.of_patients, score.of_patients),
        "warnings": list(evaluation.warnings),
        "threshold": None if rule.threshold is None else rule.threshold.value,
        "threshold_origin": "the likeliest class is called" if rule.threshold is None else rule.threshold.origin,
        "temperature": rule.temperature.value,
        "temperature_origin": rule.temperature.origin,
        "confusion": confusion(test.labels, rule.predict(test.probability), len(classes)),
        "roc": roc_of(test)._asdict(),
        "classes": list(classes),
        "localised": len(checks.localisation.bags),
        "not_localised": checks.localisation.left_out,
        "flipped": len(checks.flipping),
        "comparison": [
            {
                "name": row.name,
                "auroc": nan_to_none(row.auroc.value),
                "localisation_auroc": nan_to_none(row.localisation_auroc.value),
            }
            for row in comparison
        ],
        **run_entries(run, report),
    }


def run_entries(run: RunPredictions, report: str) -> dict[str, Any]:
    """Models, bags, slides and labels of a run, and its report."""
    return {
        "folds": run.spec.folds,
        "bag": run.spec.train.bag,
        "slides": {split: sum(len(entry.slides) for entry in run.split(split).entries) for split in SPLIT_NAMES},
        "quarantined": run.catalogue.quarantined(),
        **({"labels_from": run.labels_from, "label_changes": list(run.label_changes)} if run.labels_from else {}),
        "report": report,
    }


def attention_entropy(run: RunPredictions) -> float:
    """Median normalised entropy of attention over test bags, NaN where there are none."""
    entropies = [normalised_entropy(run.predictions[index].attention) for index in run.bags.split("test")]
    return float(np.nanmedian(entropies)) if entropies else math.nan


def metric_entries(estimates: dict[str, Estimate], score: dict[str, Estimate]) -> dict[str, Any]:
    """Values, intervals and reasons; empty where there is no metric."""
    if not estimates:
        return {}
    return {
        **{name: nan_to_none(estimate.value) for name, estimate in estimates.items()},
        "intervals": interval_entries(estimates),
        "score_intervals": interval_entries(score),
        "reasons": {name: estimate.reason for name, estimate in estimates.items() if estimate.reason is not None},
    }


def interval_entries(estimates: dict[str, Estimate]) -> dict[str, list[float]]:
    """Low and high end of each metric that has an interval."""
    return {name: [estimate.low, estimate.high] for name, estimate in estimates.items() if not math.isnan(estimate.low)}


def nan_to_none(value: float) -> float | None:
    """The value, None for NaN, which JSON lacks."""
    return None if math.isnan(value) else value
