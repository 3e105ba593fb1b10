"""Results of an evaluation of regression as one JSON object."""

from typing import Any

from milcore.evaluation.metrics_json import (
    attention_entropy,
    interval_entries,
    metric_entries,
    nan_to_none,
    run_entries,
)
from milcore.evaluation.report.regression_contents import RegressionComparison, RegressionReport
from milcore.evaluation.run_predictions import RunPredictions
from milcore.metrics.regression.summary import RegressionMetrics


def regression_json(run: RunPredictions, data: RegressionReport, report: str) -> dict[str, Any]:
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
        "target_column": train.target_column,
        "regression": _numbers(metrics) | {"target_scale": data.scale._asdict()},
        "sites": {
            site: metric_entries(of_site.overall, {}) | _numbers(of_site) for site, of_site in metrics.of_sites.items()
        },
        "splits": {
            count.split: {name: value for name, value in count._asdict().items() if name != "split"}
            for count in data.counts
        },
        "warnings": list(data.warnings),
        "classes": [],
        "comparison": [_comparison(row) for row in data.comparison],
        **run_entries(run, report),
    }


def _numbers(metrics: RegressionMetrics) -> dict[str, int]:
    return {"bags": metrics.bags, "patients": metrics.patients}


def _comparison(row: RegressionComparison) -> dict[str, Any]:
    estimates = {name: getattr(row, name) for name in ("r2", "mae", "spearman")}
    values = {name: nan_to_none(estimate.value) for name, estimate in estimates.items()}
    return {"name": row.name, **values, "intervals": interval_entries(estimates)}
