"""The results of an evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

from milcore.evaluation.attention.checks import AttentionChecks
from milcore.evaluation.decision import DecisionRule
from milcore.evaluation.run_predictions import RunPredictions
from milcore.evaluation.scores import SplitMetrics
from milcore.metrics.classification import (
    Comparison,
)


class Evaluation(NamedTuple):
    """Everything that was found of a run; ``rows`` are the model's own and those it is compared with."""

    run: RunPredictions
    rule: DecisionRule
    measured: SplitMetrics
    checked: AttentionChecks
    rows: Sequence[Comparison]
