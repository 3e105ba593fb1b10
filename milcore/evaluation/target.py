"""Target in the room of evaluation: predictions, metrics, report and model card."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from milcore.errors import InputError
from milcore.evaluation.attention.write import AttentionFiles
from milcore.evaluation.report import SweepTable
from milcore.evaluation.run_predictions import RunPredictions
from milcore.store.annotation_record import AnnotationRecord
from milcore.training.run_folder import Run


class EvaluationOptions(NamedTuple):
    """Options of an evaluation.

    Args:
        baselines: also train and show the rows the model has to beat.
        sweep: trials of the sweep whose settings the run took.
        files: of the attention of each test slide.
        with_leave_one_out: also the change of the output without each instance.
        annotations: as ingestion recorded them, or as they were asked for.
        device: of models that are trained.
        compare_with: a run whose AUROC on the same bags is shown beside this one's.
    """

    baselines: bool
    sweep: SweepTable | None
    files: AttentionFiles
    with_leave_one_out: bool
    annotations: AnnotationRecord
    device: torch.device
    compare_with: Run | None = None


class EvaluationPages(NamedTuple):
    """Content of the files of an evaluation.

    Args:
        summary: of ``metrics.json``.
        report: of ``report.html``.
        model_card: of ``MODEL_CARD.md``.
        warnings: lines for the user.
    """

    summary: dict[str, Any]
    report: str
    model_card: str
    warnings: Sequence[str]


class EvaluationTarget(NamedTuple):
    """Row of a target in the table of evaluations.

    Args:
        columns: of ``predictions.parquet`` for every bag, before ``split`` and, of the prediction, after ``fold``.
        evaluate: chooses the rule outside the test split, measures that split, writes the attention of its slides, and
            makes the pages.
    """

    columns: Callable[[RunPredictions], tuple[dict[str, pa.Array], dict[str, pa.Array]]]
    evaluate: Callable[[RunPredictions, EvaluationOptions], EvaluationPages]


def check_no_comparison(run: RunPredictions, options: EvaluationOptions) -> None:
    """Check that no run to compare with is named, which only classes have.

    Raises:
        InputError: one is named.
    """
    if options.compare_with is not None:
        raise InputError(
            f"compare_with: expected a run of target classification, got one of {run.spec.train.target}; leave "
            "compare_with out"
        )
