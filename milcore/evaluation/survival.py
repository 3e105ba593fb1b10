"""Evaluation of survival: columns of predictions."""

import pyarrow as pa

from milcore.evaluation.run_predictions import RunPredictions
from milcore.evaluation.target import EvaluationOptions, EvaluationPages, EvaluationTarget
from milcore.training.survival import risk_columns


def _columns(run: RunPredictions) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """Time and event of every bag, and its risk."""
    entries = run.bags.entries
    return risk_columns(entries, [run.predictions[index] for index in range(len(entries))])


def _evaluate(run: RunPredictions, options: EvaluationOptions) -> EvaluationPages:
    raise NotImplementedError(f"evaluation of {run.uri}: of branch survival-metrics, {options}")


SURVIVAL = EvaluationTarget(columns=_columns, evaluate=_evaluate)
