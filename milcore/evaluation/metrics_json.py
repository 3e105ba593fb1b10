"""What an evaluation found, as one JSON object."""

import math
from typing import Any

import numpy as np

from milcore.config import SPLIT_NAMES
from milcore.evaluation.attention.patch_flipping import normalised_entropy
from milcore.evaluation.results import Evaluation
from milcore.evaluation.run_predictions import RunPredictions
from milcore.evaluation.scores import roc_of
from milcore.metrics.classification import Estimate, confusion


def metrics_json(found: Evaluation, report_uri: str) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Args:
        found: what evaluation found.
        report_uri: where the report of it lies.
    """
    run, rule, measured, checked, rows = found
    test = run.split("test")
    classes = run.spec.classes
    delong = measured.auroc_delong
    return {
        **_figures(measured.overall),
        **{f"{name}_calibrated": or_none(its.value) for name, its in measured.calibrated.items()},
        **{name: or_none(value) for name, value in own_figures(run).items()},
        "auroc_delong": None if math.isnan(delong.low) else [delong.low, delong.high],
        "per_class": {name: _figures(its) for name, its in zip(classes, measured.of_class, strict=False)},
        "patients": _figures(measured.of_patients),
        "warnings": list(checked.warnings),
        "threshold": None if rule.threshold is None else rule.threshold.value,
        "threshold_origin": "the likeliest class is called" if rule.threshold is None else rule.threshold.origin,
        "temperature": rule.temperature.value,
        "temperature_origin": rule.temperature.origin,
        "confusion": confusion(test.labels, rule.call(test.probability), len(classes)),
        "roc": roc_of(test)._asdict(),
        "classes": list(classes),
        "folds": run.spec.folds,
        "bag": run.spec.train.bag,
        "slides": {split: sum(len(entry.slides) for entry in run.split(split).entries) for split in SPLIT_NAMES},
        "localised": len(checked.localisation.bags),
        "not_localised": checked.localisation.left_out,
        "flipped": len(checked.flipping),
        "comparison": [
            {
                "name": row.name,
                "auroc": or_none(row.auroc.value),
                "localisation_auroc": or_none(row.localisation_auroc.value),
            }
            for row in rows
        ],
        "quarantined": run.store.quarantined(),
        "report": report_uri,
    }


def own_figures(run: RunPredictions) -> dict[str, float]:
    """The median normalised entropy of attention over test bags, NaN where there is none."""
    even = [normalised_entropy(run.said[index].attention) for index in run.bags.split("test")]
    return {"attention_entropy": float(np.nanmedian(even)) if even else math.nan}


def _figures(values: dict[str, Estimate]) -> dict[str, Any]:
    """Values, intervals and reasons; nothing where there is no value at all."""
    if not values:
        return {}
    return {
        **{name: or_none(its.value) for name, its in values.items()},
        "intervals": {name: [its.low, its.high] for name, its in values.items() if not math.isnan(its.low)},
        "reasons": {name: its.reason for name, its in values.items() if its.reason is not None},
    }


def or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
