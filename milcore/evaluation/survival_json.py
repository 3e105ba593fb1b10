"""Results of an evaluation of survival as one JSON object."""

from collections.abc import Sequence
from typing import Any

from milcore.evaluation.metrics_json import (
    attention_entropy,
    interval_entries,
    metric_entries,
    nan_to_none,
    run_entries,
)
from milcore.evaluation.report.survival_contents import SurvivalComparison, SurvivalReport
from milcore.evaluation.run_predictions import RunPredictions
from milcore.metrics.classification import Estimate
from milcore.metrics.survival.risk_groups import RiskGroup
from milcore.metrics.survival.summary import SurvivalMetrics


def survival_json(run: RunPredictions, data: SurvivalReport, report: str) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Args:
        run: with the bags of each split.
        data: contents of its report.
        report: file name of its report, in the same folder.
    """
    metrics, train = data.metrics, run.spec.train
    return {
        **metric_entries(metrics.overall, {}),
        "attention_entropy": nan_to_none(attention_entropy(run)),
        "target": train.target,
        "time": train.time,
        "event": train.event,
        "survival": _details(metrics) | {"estimated_of": data.reference, "cut_points": list(data.cut_points)},
        "sites": {
            site: metric_entries(of_site.overall, {}) | _details(of_site) for site, of_site in metrics.of_sites.items()
        },
        "splits": {count.split: {"patients": count.patients, "events": count.events} for count in data.counts},
        "warnings": list(data.warnings),
        "classes": [],
        "comparison": [_comparison(row) for row in data.comparison],
        **run_entries(run, report),
    }


def _details(metrics: SurvivalMetrics) -> dict[str, Any]:
    """Metrics by time, groups of risk, and what they were measured by."""
    return {
        "patients": metrics.patients,
        "events": metrics.events,
        "times": list(metrics.times),
        "tau": metrics.tau,
        "risk_cut": nan_to_none(metrics.cut),
        "dynamic_auc": _by_time(metrics.times, metrics.dynamic_auc),
        "brier_score": _by_time(metrics.times, metrics.brier_score),
        "groups": [_group(group) for group in metrics.groups],
        "calibration": [group._asdict() for group in metrics.calibration],
    }


def _by_time(times: Sequence[float], estimates: Sequence[Estimate]) -> list[dict[str, Any]]:
    return [{"time": time, **_estimate(each)} for time, each in zip(times, estimates, strict=True)]


def _estimate(estimate: Estimate) -> dict[str, Any]:
    """Value, interval and reason."""
    ends = [nan_to_none(estimate.low), nan_to_none(estimate.high)]
    return {"value": nan_to_none(estimate.value), "interval": ends if ends[0] is not None else None} | (
        {"reason": estimate.reason} if estimate.reason else {}
    )


def _group(group: RiskGroup) -> dict[str, Any]:
    curve = {} if group.curve is None else {name: column.tolist() for name, column in group.curve._asdict().items()}
    return {"name": group.name, "patients": group.patients, "events": group.events, "curve": curve}


def _comparison(row: SurvivalComparison) -> dict[str, Any]:
    estimates = {name: getattr(row, name) for name in ("harrell_c", "uno_c", "integrated_brier_score")}
    values = {name: nan_to_none(estimate.value) for name, estimate in estimates.items()}
    return {"name": row.name, **values, "intervals": interval_entries(estimates)}
